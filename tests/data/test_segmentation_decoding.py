"""Label images by their numbers, images of every kind, pairs that do not fit, and files that are broken."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import encoded
from PIL import Image as Pillow
from segmentation_sets import VOID, classes_of, pair, pairs, picture, write_pair_files, write_pairs

from edgetrain.data import segmentation_store
from edgetrain.data.segmentation import SegmentationData
from edgetrain.data.segmentation_decoding import BrokenFile, read_label
from edgetrain.errors import UserError


def built(folder: Path, **options) -> SegmentationData:
    settings = {"num_classes": 3, "void": [VOID], "size": [8, 8], "batch_size": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
    data = SegmentationData(path=str(folder), **(settings | options))
    data.prepare_data()
    return data


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as raised:
        built(folder, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def of(folder: Path, rows: list[dict], start: int = 20) -> Path:
    """A set whose train split begins with the given rows."""
    splits = {"validation": range(start, start + 2), "test": range(start + 2, start + 4)}
    return write_pairs(
        folder, {"train": [*rows, *pairs(range(4))], **{name: pairs(each) for name, each in splits.items()}}
    )


def reading(content: bytes) -> np.ndarray:
    return read_label(io.BytesIO(content), "it")


# What a label image holds


def test_palette_labels_are_read_by_index_and_never_by_colour():
    image = Pillow.fromarray(np.array([[0, 1, 2], [200, 2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([9, 9, 9] * 256)  # every colour is the same
    for options in ({}, {"transparency": 0}):
        file = io.BytesIO()
        image.save(file, "png", **options)
        assert reading(file.getvalue()).tolist() == [[0, 1, 2], [200, 2, 1]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_keep_their_numbers(bits: int):
    """A grey PNG of 2 or 4 bits is stretched to 8 by Pillow; written by hand, since Pillow writes none."""
    import struct
    import zlib

    values = [[place % 2**bits for place in range(8)], [2**bits - 1] * 8]
    rows = b"".join(
        b"\0" + int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(bits, "big") for row in values
    )

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert reading(png).tolist() == values


def test_labels_of_16_bits_are_read_whole():
    values = np.array([[0, 255, 256], [257, 40_000, 65_535]], dtype=np.uint16)
    assert reading(encoded(values)).tolist() == values.tolist()
    assert reading(encoded(values, "tiff")).tolist() == values.tolist()
    deep = values.astype(np.int32) * 2
    assert reading(encoded(deep, "tiff")).tolist() == deep.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_labels_of_colours_are_refused(mode: str):
    file = io.BytesIO()
    Pillow.new(mode, (4, 4)).save(file, "tiff" if mode in ("CMYK", "F") else "png")
    with pytest.raises(UserError, match=f"it has colours \\(mode {mode}\\), not a class a pixel; convert it") as raised:
        reading(file.getvalue())
    assert not isinstance(raised.value, BrokenFile)  # never skipped


def test_labels_that_were_compressed_with_loss_are_refused():
    with pytest.raises(UserError, match="it is a JPEG, which blurs the class numbers at every edge"):
        reading(encoded(classes_of(0), "jpeg"))


def test_16_bit_and_palette_labels_train_like_any_other(tmp_path: Path):
    rows = pairs(range(4))
    deep = [
        row | {"label": {"bytes": encoded(classes_of(take).astype(np.uint16)), "path": None}}
        for take, row in enumerate(rows)
    ]
    held_out = {"validation": pairs(range(20, 22)), "test": pairs(range(22, 24))}
    plain, deep = (
        built(write_pairs(tmp_path / str(len(each[0])) / name, {"train": each} | held_out))
        for name, each in (("a", rows), ("b", deep))
    )
    for place in range(4):
        assert torch.equal(plain.samples("train")[place][1], deep.samples("train")[place][1])


# Images of every kind


def test_images_of_every_kind_are_read_with_their_labels(tmp_path: Path):
    values = classes_of(0)
    colour = picture(values)
    cmyk, alpha = io.BytesIO(), np.dstack([colour, np.full(values.shape, 7, np.uint8)])
    Pillow.fromarray(colour).convert("CMYK").save(cmyk, "tiff")
    kinds = {
        "grey": encoded(colour[:, :, 0]),
        "alpha": encoded(alpha),
        "cmyk": cmyk.getvalue(),
        "deep": encoded(colour[:, :, 0].astype(np.uint16) * 256),
    }
    rows = [pair(0) | {"image": {"bytes": content, "path": name}} for name, content in kinds.items()]
    data = built(of(tmp_path / "kinds", rows))
    for place, name in enumerate(kinds):
        image, classes = data.read("train", place)
        expected = colour if name in ("alpha", "cmyk") else np.repeat(colour[:, :, :1], 3, axis=2)
        assert np.abs(image.astype(int) - expected).max() <= 1, name
        assert np.array_equal(classes, np.where(values == VOID, 255, values))


@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (12, 1)])
def test_sides_of_one_pixel_are_padded_with_void(tmp_path: Path, shape: tuple[int, int]):
    values = np.ones(shape, dtype=np.uint8)
    data = built(of(tmp_path / "thin", [pair(0, values)]), scale=[8, 8])
    for samples in (data.samples("train"), data.training_samples()):
        image, classes = samples[0]
        assert (image.shape, classes.shape) == ((3, 8, 8), (8, 8))
        assert set(classes.unique().tolist()) <= {1, 255}
        assert (classes == 1).any()
        assert torch.isfinite(image).all()
    splits = {
        name: [pair(take, values), *pairs(range(30 + take, 31 + take))]
        for take, name in enumerate(("train", "validation", "test"))
    }
    images, classes = next(iter(built(write_pairs(tmp_path / "all", splits), scale=[8, 8]).test_dataloader()))
    assert classes.shape == (1, *shape)
    assert min(images.shape[2:]) >= 1


# What does not fit


def test_an_image_and_a_label_of_other_sizes_are_named(tmp_path: Path):
    row = pair(0) | {"label": {"bytes": encoded(classes_of(0, 12, 15)), "path": "0_label.png"}}
    said = refusal(of(tmp_path / "sizes", [row]), skip_broken=True)
    assert "row 0 of train (0.png) has 16x12 pixels, but its label image 15x12; both need the same" in said


def test_a_label_outside_the_classes_is_named_with_its_value_and_row(tmp_path: Path):
    folder = of(tmp_path / "outside", [])
    said = refusal(folder, void=[], skip_broken=True)
    assert "the label image of row " in said
    assert "_label.png) has the value 3, which is no class of data.num_classes=3; list it in data.void" in said
    assert "has the value 2, 3, which is no class" in refusal(folder, void=[], num_classes=2)
    assert "has the value 0, which is no class that data.label_map names" in refusal(folder, label_map={1: 0, 2: 1})


def test_a_colour_label_is_named_with_its_row(tmp_path: Path):
    row = pair(0) | {"label": {"bytes": encoded(picture(classes_of(0))), "path": "0_label.png"}}
    said = refusal(of(tmp_path / "colours", [row]), skip_broken=True)
    assert "the label image of row 0 of train (0_label.png) has colours (mode RGB)" in said


# Broken files


def broken_set(folder: Path) -> Path:
    """Of ten training images the second is cut off, the fourth is none, and the label of the sixth is cut off."""
    rows = pairs(range(10))
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:60]
    rows[3]["image"]["bytes"] = b"no image"
    rows[5]["label"]["bytes"] = rows[5]["label"]["bytes"][:50]
    return write_pairs(folder, {"train": rows, "validation": pairs(range(20, 22)), "test": pairs(range(22, 24))})


def test_broken_files_are_all_named_and_counted_before_training(tmp_path: Path):
    folder = broken_set(tmp_path / "broken")
    for _ in range(2):  # the second time from the cache
        said = refusal(folder)
        assert "is no image that can be decoded" in said
        assert "and 2 more cannot be decoded: row" in said
        assert all(f"row {row} of train ({row}" in said for row in (1, 3, 5))
        assert said.endswith("data.skip_broken=true leaves such images out")


def test_broken_files_are_left_out_by_choice_and_counted(tmp_path: Path):
    folder = broken_set(tmp_path / "broken")
    with pytest.warns(UserWarning, match="3 images cannot be decoded and are left out: row") as warned:
        data = built(folder, skip_broken=True)
    assert len(warned) == 1
    assert data.facts()["broken"] == {"train": 3, "validation": 0, "test": 0}
    assert data.facts()["train"]["samples"] == 7
    assert "train: 3 images left out because they cannot be decoded" in data.preview().notes
    assert [item.content[1] for item in data.splits["train"].items] == [0, 2, 4, 6, 7, 8, 9]
    assert sum(len(images) for images, _ in data.train_dataloader()) == 7


def decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options) -> tuple[SegmentationData, Path]:
    """A set too large for the cache, of which a file has broken since it was looked at."""
    monkeypatch.setattr(segmentation_store, "LARGEST_CACHE", 100)
    splits = {"training": range(12), "val": range(20, 22), "test": range(22, 24)}
    folder = write_pair_files(tmp_path / "files", splits)
    data = built(folder, **options)
    assert data.store.stream is None
    file = folder / "images" / "training" / "take_4.png"
    file.write_bytes(file.read_bytes()[:60])
    return data, file


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_in_the_middle_of_an_epoch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    data, _ = decoded_again(tmp_path, monkeypatch, workers=workers)
    with pytest.raises(UserError) as raised:
        list(data.train_dataloader())
    assert "(images/training/take_4.png) is no image that can be decoded" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_in_the_middle_of_an_epoch_is_replaced_by_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    data, _ = decoded_again(tmp_path, monkeypatch, workers=workers, skip_broken=True)
    loader = data.train_dataloader()
    with pytest.warns(UserWarning, match=r"1 images could not be decoded in training.*take_4.png\)$") as warned:
        batches = list(loader)
    assert len(warned) == 1
    assert sum(len(images) for images, _ in batches) == 12
    place = [pair.where for pair in data.splits["train"].items].index("row 6 of train (images/training/take_4.png)")
    after = data.training_samples().readable(place)
    assert np.array_equal(after[0], data.read("train", (place + 1) % 12)[0])


def test_a_file_of_a_judged_split_that_breaks_is_always_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, file = decoded_again(tmp_path, monkeypatch, skip_broken=True)
    other = file.parents[1] / "test" / "take_22.png"
    other.write_bytes(b"")
    with pytest.raises(UserError, match=r"\(images/test/take_22.png\) is no image that can be decoded"):
        list(data.test_dataloader())


def test_when_nothing_can_be_read_any_more_training_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, file = decoded_again(tmp_path, monkeypatch, skip_broken=True)
    for each in file.parent.iterdir():
        each.write_bytes(b"")
    with pytest.raises(UserError, match="none of the training images can be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(data.train_dataloader())


def test_a_missing_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, file = decoded_again(tmp_path, monkeypatch)
    file.unlink()
    with pytest.raises(UserError, match=r"\(images/training/take_4.png\): no such file is there"):
        list(data.train_dataloader())
