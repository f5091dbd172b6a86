"""Where pairs are: tables, folders as ADE20K and Cityscapes have them, and what is missing from them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from datasets import Features, Value
from image_sets import write_images
from segmentation_sets import VOID, classes_of, pairs, write_pair_files, write_pairs

from edgetrain.data.segmentation import SegmentationData
from edgetrain.errors import UserError

SPLITS = {"train": range(4), "val": range(10, 12), "test": range(20, 23)}


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


def option(name: str, **changes) -> SegmentationData:
    node = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text()) | {"seed": 0} | changes
    node.pop("_target_")
    data = SegmentationData(**node)
    data.prepare_data()
    return data


def taken(data: SegmentationData) -> dict[str, list[int]]:
    """The takes of each split, as its images' first pixel tells them."""
    return {
        name: [int(data.read(name, place)[0][0, 0, 0]) for place in range(len(split.items))]
        for name, split in data.splits.items()
    }


def test_a_table_and_a_folder_of_files_hold_the_same(tmp_path: Path):
    files = built(write_pair_files(tmp_path / "files", SPLITS))
    table = built(
        write_pairs(
            tmp_path / "table", dict(zip(("train", "validation", "test"), map(pairs, SPLITS.values()), strict=True))
        )
    )
    assert files.facts() == table.facts()
    assert taken(files) == {"train": [0, 1, 2, 3], "validation": [10, 11], "test": [20, 21, 22]}
    assert taken(files) == taken(table)


def test_a_table_may_name_files_beside_it(tmp_path: Path):
    folder = write_pair_files(tmp_path / "files", SPLITS)
    rows = ["photo,mask"]
    for take in range(4):
        rows.append(f"files/images/train/take_{take}.png,files/annotations/train/take_{take}.png")
    for name, start in (("a", 10), ("b", 20)):
        (tmp_path / f"{name}.csv").write_text("\n".join([rows[0], rows[1 + (start == 20)]]))
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = SegmentationData(
        path=str(tmp_path / "table.csv"), image="photo", label="mask", num_classes=3, void=[VOID], size=[8, 8]
    )
    found = data.find_splits()
    keys = sorted(pair.key for split in found.values() for pair in split.items)
    assert keys == sorted(pair.key for pair in built(folder).splits["train"].items)


def test_ade20k_is_read_as_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Value 0 is void, values 1, 2, 3 are the classes 0, 1, 2; validation stands for test."""
    folder = write_pair_files(
        tmp_path / "ADEChallengeData2016",
        {"training": range(6), "validation": range(10, 13)},
        image_files="images/{split}/{name}.jpg",
        names="ADE_{take:08}",
        raw=np.array([1, 2, 3, 0]),
    )
    (folder / "sceneCategories.txt").write_text("ADE_00000000 bathroom")
    monkeypatch.setenv("EDGETRAIN_DATA", str(tmp_path))
    data = option("ade20k", batch_size=2, workers=0)
    assert [data.facts()[name]["samples"] for name in data.splits] == [6, 3, 3]
    _, classes = data.read("train", 0)
    values = classes_of(0)
    assert np.array_equal(classes, np.where(values == VOID, 255, values))
    assert data.facts()["test_is"] == "the validation split"
    assert data.splits["test"].items == data.splits["validation"].items
    assert any(note.startswith("test: the validation split stands for it") for note in data.preview().notes)
    assert "classes without a pixel, which cannot be learned: floor, tree" in " ".join(data.preview().notes)
    image, classes = data.samples("test")[0]
    assert image.shape == (3, 512, 683)  # 16x12 enlarged until the shorter side is 512, as the scale says
    assert classes.shape == (12, 16)
    assert [len(images) for images, _ in data.test_dataloader()] == [2, 1]
    images, classes = next(iter(data.train_dataloader()))
    assert (images.shape, classes.shape) == ((2, 3, 512, 512), (2, 512, 512))
    grey = torch.tensor([123.675, 116.28, 103.53]) / 255
    assert torch.allclose(data.statistics[0].flatten(), grey, atol=1e-6)


def test_cityscapes_is_read_as_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    patterns = ("leftImg8bit/{split}/{name}_leftImg8bit.png", "gtFine/{split}/{name}_gtFine_labelIds.png")
    folder = tmp_path / "cityscapes"
    raw = np.array([7, 26, 11, 4])  # road, car, building, static
    for city, splits in {
        "aachen": {"train": range(3)},
        "ulm": {"train": range(3, 6)},
        "lindau": {"val": range(10, 12)},
    }.items():
        write_pair_files(folder, splits, *patterns, names=city + "/" + city + "_{take:06}_000019", raw=raw)
    write_pair_files(
        folder, {"test": range(20, 22)}, *patterns, names="bonn/bonn_{take:06}", raw=np.array([1, 2, 3, 0])
    )
    write_pair_files(folder, {"demoVideo": range(30, 32)}, *patterns, names="stuttgart/{take:06}", raw=raw)
    other = folder / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_color.png"
    other.write_bytes(b"not looked at")
    monkeypatch.setenv("EDGETRAIN_DATA", str(tmp_path))
    data = option("cityscapes", size=[8, 8], scale=None, workers=0)
    assert taken(data) == {"train": [0, 1, 2, 3, 4, 5], "validation": [10, 11], "test": [10, 11]}
    _, classes = data.read("train", 0)
    assert np.array_equal(classes, np.array([0, 13, 2, 255])[classes_of(0)])
    shares = data.facts()["class_pixels"]["train"]
    assert shares["road"] + shares["car"] + shares["building"] == pytest.approx(1)
    assert "2 images of demoVideo were left out: it is none of train" in " ".join(data.preview().notes)
    said = refusal(
        folder,
        image_files=patterns[0],
        label_files=patterns[1],
        num_classes=19,
        label_map={7: 0, 26: 13, 11: 2},
        void=[0, 1, 2, 3, 4],
    )
    assert "no pixel of the test split of" in said
    assert said.endswith("set data.test=validation where the set publishes no test labels")


def test_camvid_of_its_source_is_read_as_it_is(tmp_path: Path):
    """train/x.png and trainannot/x.png, where the wide pattern of images takes in label images too."""
    patterns = {"image_files": "{split}/{name}.png", "label_files": "{split}annot/{name}.png"}
    data = built(write_pair_files(tmp_path / "CamVid", SPLITS, *patterns.values()), **patterns)
    assert taken(data) == {"train": [0, 1, 2, 3], "validation": [10, 11], "test": [20, 21, 22]}
    assert data.preview().notes == []


def test_a_pattern_without_a_split_is_all_train(tmp_path: Path):
    patterns = {"image_files": "photos/{name}.*", "label_files": "masks/{name}_mask.png"}
    folder = write_pair_files(tmp_path / "flat", {"": range(150)}, "photos/{name}.jpg", "masks/{name}_mask.png")
    data = built(folder, **patterns)
    sizes = {name: len(takes) for name, takes in taken(data).items()}
    assert sum(sizes.values()) == 150
    assert min(sizes.values()) >= 1
    assert data.facts()["test_is"] == "a part of train, by a hash of each image"


def test_the_hub_is_asked_where_there_is_no_folder(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def no_network(path: str, columns: dict, kind: str) -> None:
        asked.append((path, columns))
        raise UserError("no network")

    monkeypatch.setattr("edgetrain.data.segmentation_rows.read_columns", no_network)
    with pytest.raises(UserError, match="no network"):
        option("ade20k")
    assert asked == [("zhoubolei/scene_parse_150:scene_parsing", {"image": "image", "label": "annotation"})]


def test_missing_partners_are_counted_and_named(tmp_path: Path):
    folder = write_pair_files(tmp_path / "files", SPLITS)
    (folder / "annotations" / "train" / "take_2.png").unlink()
    (folder / "annotations" / "train" / "take_3.png").unlink()
    said = refusal(folder)
    assert "2 images of train have no label image, the first images/train/take_2.png; put it where annotations/" in said
    folder = write_pair_files(tmp_path / "more", SPLITS)
    (folder / "images" / "val" / "take_11.png").unlink()
    assert "1 label images of validation have no image, the first annotations/val/take_11.png" in refusal(folder)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_files": "photos/{split}/{name}.jpg"}, "no file in .* matches data.image_files=photos"),
        ({"label_files": "labels/{split}/{name}.png"}, "no file in .* matches data.label_files=labels"),
        ({"image_files": "images/{split}/*.png"}, "data.image_files=images/{split}/\\*.png has no {name}"),
        ({"label_files": "annotations/{split}/take.png"}, "data.label_files=.* has no {name}"),
    ],
)
def test_patterns_that_fit_nothing_are_a_sentence(tmp_path: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        built(write_pair_files(tmp_path / "files", SPLITS), **options)


def test_sets_that_cannot_be_paired_are_a_sentence(tmp_path: Path):
    folder = write_pair_files(tmp_path / "two", SPLITS, image_files="images/{split}/{name}.png")
    write_pair_files(folder, {"train": range(1)}, image_files="images/{split}/{name}.jpg")
    assert "both match data.image_files=images/{split}/{name}.* under one name" in refusal(folder)
    assert "has no train split, only test" in refusal(write_pair_files(tmp_path / "test", {"test": range(3)}))
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")
    table = write_pairs(tmp_path / "table", {"train": pairs(range(3))})
    assert "data.image=img is not in data.path" in refusal(table, image="img")
    assert "data.label=mask is not in data.path" in refusal(table, label="mask")
    numbered = Features({"image": Value("binary"), "label": Value("int64")})
    rows = [{"image": io.BytesIO(b"x").getvalue(), "label": 1}]
    folder = write_images(tmp_path / "numbers", {"train": rows}, numbered)
    assert "data.label=label of data.path" in refusal(folder)
    assert "holds no images or files' names" in refusal(folder)
