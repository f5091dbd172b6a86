"""Images by label: what a batch holds, augmentation and resume, decoding and what is kept of it, what goes wrong."""

import io
from collections import Counter
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Features, Image, Value
from image_sets import LABELS, encoded, picture, rows_of, write_cifar10, write_files, write_images
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image as Pillow
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from edgetrain.build import build, check_classes, check_shape
from edgetrain.compose import compose
from edgetrain.data.images import ImageData
from edgetrain.data.images_augmentation import INCREMENT, Augmentation, in_batches, keys_of, mixed, one_by_one, uniform
from edgetrain.data.images_decoding import fitted, read_image
from edgetrain.data.labelled import Split, thinned
from edgetrain.errors import UserError
from edgetrain.methods.calibration import draw
from edgetrain.models.timm import timm_model
from edgetrain.tasks.classify import Classify

CROP_AND_FLIP = [v2.RandomCrop((8, 8), padding=2), v2.RandomHorizontalFlip()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 labels; 60 takes each for training and 4 for test, 8 x 8."""
    splits = {"train": rows_of(range(4, 64)), "test": rows_of(range(4))}
    return write_images(tmp_path_factory.mktemp("pictures"), splits)


def built(folder: Path, **options) -> ImageData:
    data = ImageData(path=str(folder), **({"num_classes": 3, "size": [8, 8], "batch_size": 16} | options))
    data.prepare_data()
    data.setup("fit")
    return data


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as raised:
        built(folder, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def of(rows: list[dict], **changes) -> list[dict]:
    """The first row with other values, before the others."""
    return [rows[0] | changes, *rows[1:]]


def images_of(count: int, height: int = 8, width: int = 8) -> torch.Tensor:
    """uint8 [count, 3, height, width], all pixels of an image different."""
    return torch.arange(3 * height * width, dtype=torch.uint8).view(1, 3, height, width).repeat(count, 1, 1, 1)


# What a batch holds


def test_a_batch_holds_pixels_over_255_less_the_mean_over_the_standard_deviation(pictures: Path):
    data = built(pictures, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])
    inputs, labels = next(iter(data.test_dataloader()))
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((12, 3, 8, 8), torch.float32, torch.int64)
    for place, label in enumerate(labels.tolist()):
        pixels = picture(label, place // 3) / 255
        expected = (pixels - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
        assert np.allclose(inputs[place].permute(1, 2, 0), expected, atol=1e-5)
    assert labels.tolist() == [0, 1, 2] * 4
    assert data.labels == LABELS


def test_mean_and_standard_deviation_are_those_of_every_pixel_of_train(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("images", "images_decoding"):
        monkeypatch.setattr(f"edgetrain.data.{module}.TOGETHER", 50)
    data = built(pictures)
    labels = [(image.label, int(image.where.split("_")[1].split(".")[0])) for image in data.splits["train"].items]
    pixels = np.stack([picture(label, take) for label, take in labels]).reshape(-1, 3) / 255
    facts = data.facts()
    assert facts["mean"] == pytest.approx(pixels.mean(0).tolist(), abs=5.1e-5)
    assert facts["std"] == pytest.approx(pixels.std(0).tolist(), abs=5.1e-5)
    given = built(pictures, mean=facts["mean"], std=facts["std"])
    assert torch.equal(given.samples("test")[5][0], data.samples("test")[5][0])
    assert built(pictures, std=[1.0, 1.0, 1.0]).preprocessing()["mean"] == facts["mean"]


def test_an_epoch_hands_out_every_image_once_in_an_order_of_the_seed(pictures: Path):
    def firsts(seed: int) -> list[tuple[float, ...]]:
        data = built(pictures, seed=seed)
        return [tuple(image.flatten().tolist()) for images, _ in data.train_dataloader() for image in images]

    assert firsts(0) == firsts(0) != firsts(1)
    assert Counter(firsts(0)) == Counter(firsts(1))
    assert len(set(firsts(0))) == len(built(pictures).splits["train"].items)


def test_a_missing_split_is_cut_from_train_by_content_and_nothing_is_in_two(tmp_path: Path, pictures: Path):
    data = built(pictures)
    keys = {name: {image.key for image in split.items} for name, split in data.splits.items()}
    assert len(keys["train"]) + len(keys["validation"]) == 180
    assert 2 <= len(keys["validation"]) <= 20  # 5 %
    rows = rows_of(range(8))
    splits = {
        "train": rows,
        "validation": [*rows[:2], *rows_of(range(20, 21))],
        "test": [*rows[3:6], *rows_of(range(20, 22))],
    }
    data = built(write_images(tmp_path / "double", splits))
    assert [data.facts()[name] for name in splits] == [
        {"samples": 24, "dropped": 0},
        {"samples": 3, "dropped": 2},
        {"samples": 3, "dropped": 6},
    ]
    assert "test: 6 images dropped because an earlier split holds them" in data.preview().notes


def test_a_limit_keeps_images_from_the_whole_split(pictures: Path):
    data = built(pictures, limit=3)
    assert [len(split.items) for split in data.splits.values()] == [3, 3, 3]
    assert [image.content for image in data.splits["test"].items] == [("test", 2), ("test", 6), ("test", 10)]
    assert len(data.cached) == 9  # nothing else is decoded


# Augmentation and resume


def test_a_batch_of_crops_is_torchvisions_crop_at_a_place_of_its_own_for_every_image():
    images = images_of(400, 6, 7)
    for transform in (
        v2.RandomCrop((6, 7), padding=2),
        v2.RandomCrop((6, 7), padding=(1, 3), fill=9),
        v2.RandomCrop((6, 7), padding=2, padding_mode="reflect"),
        v2.RandomCrop((4, 5)),
    ):
        cropped = in_batches(transform)(transform, images, keys_of(0, 0, range(400)))
        padded = images[0]
        if transform.padding is not None:
            padded = functional.pad(padded, transform.padding, transform.fill, transform.padding_mode)
        height, width = transform.size
        places = {
            functional.crop(padded, top, left, height, width).numpy().tobytes(): (top, left)
            for top in range(padded.shape[1] - height + 1)
            for left in range(padded.shape[2] - width + 1)
        }
        counts = Counter(places[image.contiguous().numpy().tobytes()] for image in cropped)
        assert counts.keys() == set(places.values())  # each of them, the outermost too
        expected = 400 / len(places)
        chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_squared < len(places) + 4 * (2 * len(places)) ** 0.5


def test_a_share_of_a_batch_is_mirrored():
    images = images_of(4000)
    for share in (0.0, 0.5, 0.9, 1.0):
        transform = v2.RandomHorizontalFlip(share)
        flipped = in_batches(transform)(transform, images, keys_of(0, 0, range(4000)))
        mirrored = (flipped == functional.horizontal_flip(images[0])).flatten(1).all(1)
        assert torch.equal(flipped[~mirrored], images[~mirrored])
        assert mirrored.float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_keys_are_mixed_by_splitmix64():
    """Known answers of its authors' code: the first outputs for the seeds 0 and 1234567."""
    assert mixed(np.zeros(1, dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF]
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * INCREMENT
    assert mixed(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_crop_mirror_and_epoch_are_drawn_independently():
    keys = [keys_of(seed, epoch, range(2000)) for seed in range(2) for epoch in range(2)]
    draws = torch.stack([uniform(mixed(each + np.uint64(place))) for each in keys for place in range(3)])
    assert 0 <= draws.min() < 0.001 < 0.999 < draws.max() < 1
    assert (torch.corrcoef(draws) - torch.eye(12)).abs().max() < 4.5 / 2000**0.5
    assert len(np.unique(np.concatenate(keys))) == 8000


def test_where_an_image_is_cut_says_nothing_of_whether_it_is_mirrored():
    augmented = Augmentation([v2.RandomCrop((6, 6), padding=1), v2.RandomHorizontalFlip()])(
        images_of(3600, 6, 6), keys_of(0, 0, range(3600))
    )
    padded = functional.pad(images_of(1, 6, 6)[0], 1)
    cuts = {(top, left): padded[:, top : top + 6, left : left + 6] for top in range(3) for left in range(3)}
    ways = {cut.contiguous().numpy().tobytes(): (place, False) for place, cut in cuts.items()}
    ways |= {cut.flip(2).contiguous().numpy().tobytes(): (place, True) for place, cut in cuts.items()}
    counts = Counter(ways[image.contiguous().numpy().tobytes()] for image in augmented)
    assert len(counts) == 18
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 17 + 4 * 34**0.5  # chi-squared


def test_any_other_transform_draws_from_torch_seeded_by_the_images_key():
    images = images_of(6)
    jitter = v2.ColorJitter(brightness=0.5)
    keys = keys_of(3, 1, range(6))
    state = torch.random.get_rng_state()
    together = Augmentation([jitter])(images, keys)
    for place in range(6):
        assert torch.equal(together[place : place + 1], Augmentation([jitter])(images[:1], keys[place : place + 1]))
    assert torch.equal(torch.random.get_rng_state(), state)  # the run's own generator is left alone
    assert len({image.numpy().tobytes() for image in together}) == 6
    assert in_batches(v2.RandomCrop((8, 8), pad_if_needed=True)) is one_by_one
    torch.manual_seed(int(mixed(keys)[2].astype(np.int64)))
    assert torch.equal(jitter(images[2]), one_by_one(jitter, images[2:3], mixed(keys)[2:3])[0])


def test_what_happens_to_an_image_does_not_depend_on_its_batch(pictures: Path):
    data = built(pictures, augmentation=[*CROP_AND_FLIP, v2.RandomGrayscale(0.5)])
    samples = data.training_samples()
    together = samples.__getitems__(list(range(20)))
    assert all(torch.equal(samples[index][0], image) for index, (image, _) in enumerate(together))
    samples.epoch = 1
    assert sum(torch.equal(samples[index][0], image) for index, (image, _) in enumerate(together)) < 5
    plain = built(pictures).samples("train")
    assert all(torch.equal(data.samples("train")[index][0], plain[index][0]) for index in range(20))
    batch = next(iter(data.val_dataloader()))[0]
    assert torch.equal(batch, next(iter(built(pictures).val_dataloader()))[0])


class Recorder(lightning.LightningModule):
    """Learns nothing; remembers its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[bytes] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        self.seen.append(batch[0].numpy().tobytes() + batch[1].numpy().tobytes())
        return self.layer(torch.zeros(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("stop", [5, 12, 17])  # within an epoch of 11 or 12 batches, about its end, and in the next
def test_a_resumed_run_sees_the_same_batches(pictures: Path, tmp_path: Path, stop: int):
    def train(steps: int, resume: Path | None = None) -> list[bytes]:
        model = Recorder()
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=tmp_path,
            callbacks=[ModelCheckpoint(tmp_path / str(steps), every_n_train_steps=1, save_last=True)],
        )
        data = built(pictures, augmentation=[*CROP_AND_FLIP, v2.RandomErasing(1.0)])
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        return model.seen

    whole = train(30)
    assert len(set(whole)) == 30
    assert train(stop) == whole[:stop]
    assert train(30, tmp_path / str(stop) / "last.ckpt") == whole[stop:]


def test_workers_read_the_same_batches(pictures: Path):
    def two_epochs(workers: int) -> list[bytes]:
        loader = built(pictures, augmentation=CROP_AND_FLIP, workers=workers).train_dataloader()
        return [images.numpy().tobytes() for _ in range(2) for images, _ in loader]

    assert two_epochs(1) == two_epochs(0)


# Decoding and the cache


def reading(content: bytes, channels: int = 3) -> np.ndarray:
    return read_image(io.BytesIO(content), "it", channels).permute(1, 2, 0).numpy()


def test_every_kind_of_image_becomes_the_wanted_channels():
    grey = picture(0, 0)[:, :, 0]
    colour = picture(1, 1)
    assert np.array_equal(reading(encoded(grey)), np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(reading(encoded(grey), 1)[:, :, 0], grey)
    assert np.array_equal(reading(encoded(colour)), colour)
    luma = colour @ [0.299, 0.587, 0.114]  # ITU-R 601
    assert np.abs(reading(encoded(colour), 1)[:, :, 0] - luma).max() <= 1
    alpha = np.dstack([colour, np.arange(64, dtype=np.uint8).reshape(8, 8)])
    assert np.array_equal(reading(encoded(alpha)), colour)
    assert np.array_equal(reading(encoded(grey.astype(np.uint16) * 256 + 77)), np.repeat(grey[:, :, None], 3, axis=2))
    bits = io.BytesIO()
    Pillow.fromarray(grey > 100).save(bits, "png")
    assert np.array_equal(reading(bits.getvalue(), 1)[:, :, 0], np.where(grey > 100, 255, 0))


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_image_has_the_colours_of_its_palette(transparent: bool):
    image = Pillow.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    file = io.BytesIO()
    image.save(file, "png", **({"transparency": b"\x00\x80"} if transparent else {}))
    assert reading(file.getvalue()).tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_a_cmyk_image_has_the_colours_of_its_inks():
    file = io.BytesIO()
    Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, "jpeg")  # magenta and yellow make red
    assert np.abs(reading(file.getvalue())[4, 4].astype(int) - [255, 0, 0]).max() <= 3


def test_a_photograph_is_turned_upright():
    exif = Pillow.Exif()
    exif[0x0112] = 6  # EXIF: the camera was turned, so that the image has to be turned a quarter to the right
    pixels = picture(0, 0, 4, 8)
    assert np.array_equal(reading(encoded(pixels, "png", exif=exif)), np.rot90(pixels, -1))


def test_an_image_of_another_size_covers_the_wanted_one_and_is_cut_around_its_centre():
    halves = torch.zeros(3, 20, 60, dtype=torch.uint8)
    halves[:, :, 30:] = 200
    small = fitted(halves, (10, 10))
    assert small.shape == (3, 10, 10)
    assert small[0, 5].tolist()[:4] == [0] * 4
    assert small[0, 5].tolist()[6:] == [200] * 4  # the middle is still the middle
    flat = torch.full((3, 7, 3), 50, dtype=torch.uint8)
    assert fitted(flat, (33, 34)).unique().tolist() == [50]
    assert fitted(flat, (33, 34)).shape == (3, 33, 34)
    assert fitted(flat, (7, 3)) is flat
    ramp = torch.arange(0, 240, 2, dtype=torch.uint8).expand(3, 8, 120)
    assert (fitted(ramp, (4, 4))[0, 0].float() - ramp[0, 0].view(-1, 2).float().mean(1)[28:32]).abs().max() <= 1


def test_images_of_several_sizes_share_a_batch(tmp_path: Path):
    rows = [
        row for take in range(40) for row in rows_of(range(take, take + 1), height=6 + take % 5, width=9 + take % 7)
    ]
    data = built(write_images(tmp_path / "sizes", {"train": rows}))
    assert data.cached.shape == (120, 3, 8, 8)
    assert data.preview().lengths["train"].max() == 10


def test_what_is_decoded_is_kept_and_made_again_for_anything_that_shapes_it(pictures: Path, own_caches: Path):
    def cached(**options) -> set[str]:
        built(pictures, **options)
        return {path.name for path in (own_caches / "edgetrain" / "images").iterdir()}

    first = cached()
    assert len(first) == 1
    same = {"augmentation": CROP_AND_FLIP, "mean": [0.0] * 3, "labels": ["blue", "red", "green"], "seed": 5}
    assert cached(**same) == first
    known = first
    for change in ({"size": [8, 7]}, {"channels": 1}, {"limit": 4}):
        more = cached(**change)
        assert more > known, change
        known = more


def test_a_set_too_large_for_the_cache_is_decoded_when_it_is_asked_for(
    pictures: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
):
    small = built(pictures, augmentation=CROP_AND_FLIP)
    files = set((own_caches / "edgetrain" / "images").iterdir())
    monkeypatch.setattr("edgetrain.data.images.LARGEST_CACHE", 1000)
    large = built(pictures, augmentation=CROP_AND_FLIP)
    assert large.cached is None
    assert set((own_caches / "edgetrain" / "images").iterdir()) == files
    for one, other in zip(small.train_dataloader(), large.train_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])
    assert large.preprocessing() == small.preprocessing()


def test_nothing_half_written_is_left_when_an_image_cannot_be_read(tmp_path: Path, own_caches: Path):
    rows = rows_of(range(20))
    rows[40]["image"]["bytes"] = rows[40]["image"]["bytes"][:60]
    folder = write_images(tmp_path / "cut", {"train": rows, "test": rows_of(range(30, 32))})
    assert f"data.path={folder}: row 40 of train (1_13.png) is no image that can be decoded" in refusal(folder)
    assert not [path for path in (own_caches / "edgetrain").rglob("*") if path.is_file()]


# Where images are


def test_a_folder_of_folders_of_files_has_its_folders_names_for_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    splits = {"train": range(12), "val": range(12, 14), "testing": range(14, 16)}
    data = built(write_files(tmp_path / "files", splits))
    assert data.labels == sorted(LABELS)
    assert [data.facts()[name]["samples"] for name in ("train", "validation", "test")] == [36, 6, 6]
    monkeypatch.chdir(tmp_path)
    assert built(Path("files")).facts() == data.facts()
    apart = built(write_files(tmp_path / "apart", {"": range(60)}))
    assert sum(apart.facts()[name]["samples"] for name in apart.splits) == 180


def test_a_table_may_name_files_beside_it_or_hold_their_bytes(tmp_path: Path):
    rows = rows_of(range(40))
    (tmp_path / "table").mkdir()
    lines = ["file,colour"]
    for number, row in enumerate(rows):
        (tmp_path / "table" / f"{number}.png").write_bytes(row["image"]["bytes"])
        lines.append(f"table/{number}.png,{LABELS[row['label']]}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    named = built(tmp_path / "table.csv", image="file", label="colour", labels=LABELS)
    held = [row | {"image": row["image"]["bytes"]} for row in rows]
    features = Features({"image": Value("binary"), "label": ClassLabel(names=LABELS)})
    bytes_alone = built(write_images(tmp_path / "bytes", {"train": held}, features))
    assert bytes_alone.facts() == named.facts()
    (tmp_path / "table" / "7.png").unlink()
    assert "row 7 of train (table/7.png): no such file is there" in refusal(
        tmp_path / "table.csv", image="file", label="colour"
    )


# What goes wrong


def test_bad_images_and_labels_are_named_with_their_row(tmp_path: Path):
    rows = rows_of(range(20))
    deep = io.BytesIO()
    Pillow.fromarray(np.ones((8, 8), dtype=np.float32)).save(deep, "tiff")
    cases = {
        "is no image that can be decoded": of(rows, image={"bytes": b"no image", "path": "x.png"}),
        "its pixels have 32 bits": of(rows, image={"bytes": deep.getvalue(), "path": "x.tiff"}),
        "no such file is there": of(rows, image={"bytes": None, "path": "x.png"}),
        "has no label that the set knows; label it, or take it out": of(rows, label=None),
    }
    for number, (sentence, changed) in enumerate(cases.items()):
        folder = write_images(tmp_path / str(number), {"train": changed, "test": rows_of(range(30, 32))})
        said = refusal(folder)
        assert sentence in said, said
        assert "row 0 of train" in said


def test_a_label_that_train_does_not_know_is_a_sentence(tmp_path: Path):
    more = Features({"image": Image(), "label": ClassLabel(names=[*LABELS, "other"])})
    folder = write_images(tmp_path / "more", {"train": rows_of(range(2, 24))})
    write_images(folder, {"test": of(rows_of(range(2)), label=3)}, more)
    assert "row 0 of test has no label that the set knows" in refusal(folder)


class Float(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image / 255


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 4}, r"data.num_classes=4, but .* has 3 labels \(red, green, blue\); set data.num_classes=3"),
        ({"size": [8]}, r"data.size=\[8\] is not the height and width of an image"),
        ({"size": [0, 8]}, r"data.size=\[0, 8\] is not the height and width"),
        ({"mean": [0.5]}, r"data.mean=\[0.5\] has 1 numbers for data.channels=3"),
        ({"mean": [0.5, float("nan"), 1.0]}, r"data.mean=\[0.5, nan, 1.0\] has to hold finite numbers"),
        ({"std": [0.5, 0.0, 1.0]}, r"data.std=\[0.5, 0.0, 1.0\] is divided by"),
        ({"limit": 0}, "data.limit=0 keeps nothing"),
        ({"batch_size": 0}, "data.batch_size=0 holds no image"),
        ({"workers": -1}, "data.workers=-1 is negative"),
        ({"image": "img"}, r"data.image=img is not in data.path=.*; its columns are image, label"),
        ({"label": "lable"}, r"data.label=lable is not in .*did you mean 'label'"),
        ({"image": "label"}, "data.image=label of .* holds no images or files' names"),
        ({"label": "image"}, "data.label=image of .* holds no labels"),
        ({"labels": ["red", "green", "bleu"]}, "data.labels names bleu, which .* does not have.*did you mean 'blue'"),
        (
            {"augmentation": [v2.RandomCrop((6, 6))]},
            r"data.augmentation.0 \(RandomCrop\) makes torch.uint8 \[3, 6, 6\]",
        ),
        ({"augmentation": [v2.RandomCrop((9, 9))]}, r"data.augmentation.0 \(RandomCrop\) cannot take an image of"),
        ({"augmentation": [*CROP_AND_FLIP, Float()]}, r"data.augmentation.2 \(Float\) makes torch.float32 \[3, 8, 8\]"),
    ],
)
def test_settings_that_do_not_fit_the_set_are_a_sentence(pictures: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence) as raised:
        built(pictures, **options)
    assert "\n" not in str(raised.value)


def test_sets_that_cannot_be_trained_on_are_a_sentence(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")
    assert "has no train split" in refusal(write_images(tmp_path / "test_only", {"test": rows_of(range(2))}))
    assert "the validation split of" in refusal(write_images(tmp_path / "few", {"train": rows_of(range(1))}))
    black = [
        {"image": {"bytes": encoded(np.zeros((8, 8), np.uint8) + take), "path": None}, "label": take % 3}
        for take in range(200)
    ]
    one = [
        row | {"image": {"bytes": encoded(np.zeros((8, 8 + take), np.uint8)), "path": None}}
        for take, row in enumerate(black)
    ]
    assert "channel 0 of" in refusal(write_images(tmp_path / "black", {"train": one}))


# What is said of it


def test_facts_preview_and_preprocessing_are_plain_values(pictures: Path):
    data = built(pictures)
    facts = data.facts()
    assert facts["chance"] == pytest.approx(1 / 3)
    assert facts["majority"] == pytest.approx(1 / 3)
    assert built(pictures, labels=["blue", "green", "red"]).facts()["corpus_sha256"] != facts["corpus_sha256"]
    preview = data.preview(4)
    assert len(preview.samples) == 4
    assert preview.samples[0].startswith("8x8  ")
    assert preview.splits[-1] == {"split": "test", "images": 12, "red": 4, "green": 4, "blue": 4}
    assert [row["repeats"] for row in preview.duplicates] == [0, 0, 0]
    said = data.preprocessing()
    assert (said["height"], said["width"], said["channels"]) == (8, 8, "RGB")
    assert yaml.safe_load(yaml.safe_dump(said)) == said


def test_a_preview_of_many_labels_counts_their_extremes(tmp_path: Path):
    names = [f"label_{number:02}" for number in range(21)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    folder = write_images(tmp_path / "many", {"train": rows_of(range(12), labels=21)}, features)
    rows = built(folder, num_classes=21).preview().splits
    assert rows[0]["labels"] == 21
    assert 0 < rows[0]["fewest of a label"] <= rows[0]["most"] <= 12


def test_calibration_draws_images_that_are_not_augmented(pictures: Path):
    plain, augmented = (draw(built(pictures, augmentation=each), 32, 0) for each in ([], CROP_AND_FLIP))
    assert torch.equal(plain.inputs, augmented.inputs)
    assert plain.facts["samples"] == 32


@pytest.mark.parametrize(("size", "channels"), [([32, 32], 3), ([40, 24], 1)])
def test_a_timm_model_learns_from_images_that_were_resized(pictures: Path, size: list[int], channels: int):
    data = built(pictures, size=size, channels=channels)
    torch.manual_seed(0)
    model = timm_model("mobilenetv3_small_050", num_classes=3, in_chans=channels, input_shape=[channels, *size])
    check_shape(model, data)
    check_classes(model, data, {})
    task = Classify(model, [], lambda groups: torch.optim.AdamW(groups, lr=1e-3), total_steps=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = next(iter(data.train_dataloader()))
    losses = []
    for _ in range(3):
        losses.append(task.training_step(batch, 0))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


# The option and the real set


def test_the_option_cifar10_reads_a_set_of_its_form(tmp_path: Path):
    node = compose(["recipe=cmsis_cifar10"]).data
    data = build(node | {"path": str(write_cifar10(tmp_path / "cifar10"))})
    data.prepare_data()
    assert data.facts()["test"] == {"samples": 100, "dropped": 0}
    assert data.samples("train")[0][0].shape == (3, 32, 32)
    assert len(data.augment.transforms) == 2
    assert data.labels[3] == "cat"


def test_cifar10_is_split_as_it_is_published(shared_data: Path | None, monkeypatch: pytest.MonkeyPatch):
    if shared_data is None or not (shared_data / "cifar10").is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds cifar10")
    monkeypatch.setenv("EDGETRAIN_DATA", str(shared_data))
    node = compose(["recipe=cmsis_cifar10"]).data
    data = build(node | {"mean": None, "std": None})
    data.splits = data.find_splits()
    train, validation, test = (data.label_counts(name) for name in ("train", "validation", "test"))
    assert (train + validation).tolist() == [5000] * 10
    assert test.tolist() == [1000] * 10
    assert [split.dropped for split in data.splits.values()] == [0, 0, 0]
    assert validation.sum() == pytest.approx(2500, abs=4 * (50_000 * 0.05 * 0.95) ** 0.5)
    data.splits = {name: Split(thinned(split.items, 1000)) for name, split in data.splits.items()}
    for key in ("mean", "std"):  # those of the option, from 1,000 images
        assert data.facts()[key] == pytest.approx(node[key], abs=0.02)
