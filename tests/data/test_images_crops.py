"""Images that are cut: as ImageNet's are judged, at random from the originals, and what is done to inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import encoded, rows_of, write_files, write_imagenet, write_images
from PIL import Image as Pillow
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from edgetrain.build import build
from edgetrain.compose import compose
from edgetrain.data.images import CROP, INPUTS, ImageData
from edgetrain.data.images_augmentation import RandomNoiseErasing, keys_of, mixed, resized_crop
from edgetrain.data.images_decoding import fitted
from edgetrain.errors import UserError


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3], smooth, with all values."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(1, height // 6), max(1, width // 6), 3), dtype=np.uint8)
    return np.asarray(Pillow.fromarray(noise).resize((width, height), Pillow.Resampling.BICUBIC))


def pixels_of(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 labels; 60 images for training and 8 for validation, 30 to 60 pixels a side."""
    rows = [
        {"image": {"bytes": encoded(photograph(30 + n % 7, 36 + n % 25, n)), "path": f"{n}.png"}, "label": n % 3}
        for n in range(68)
    ]
    return write_images(tmp_path_factory.mktemp("photographs"), {"train": rows[:60], "validation": rows[60:]})


def built(folder: Path, **options) -> ImageData:
    fixed = {"num_classes": 3, "size": [24, 24], "batch_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    data = ImageData(path=str(folder), **(fixed | {"test_split": "validation"} | options))
    data.prepare_data()
    data.setup("fit")
    return data


# As ImageNet's are judged


@pytest.mark.parametrize(("height", "width"), [(300, 300), (300, 600), (450, 300), (100, 75)])
def test_a_cut_of_nine_tenths_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    """timm's transforms_imagenet_eval at crop_pct 0.9: the shorter side to floor(224 / 0.9) = 248, bicubic."""
    image = pixels_of(photograph(height, width))
    reference = v2.Compose([v2.Resize(248, InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    given = fitted(image, (224, 224), 0.9, "bicubic").float()
    apart = (given - reference(image).float()).abs()
    # Of 4:3 the longer side is 331, rounded here and cut off there to 330: half a pixel at the edges.
    assert apart.max() == 0 if (height, width) != (100, 75) else apart.mean() < 3


def test_scaling_is_pillows() -> None:
    photo = photograph(300, 300)
    for name, mode in (("bilinear", Pillow.Resampling.BILINEAR), ("bicubic", Pillow.Resampling.BICUBIC)):
        scaled = np.asarray(Pillow.fromarray(photo).resize((64, 64), mode)).astype(int)
        given = fitted(pixels_of(photo), (64, 64), interpolation=name).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(given - scaled).max() <= 1
    assert not torch.equal(
        *(fitted(pixels_of(photo), (64, 64), interpolation=name) for name in ("bilinear", "bicubic"))
    )


def test_a_cut_of_an_image_that_has_the_size_is_scaled_all_the_same() -> None:
    photo = pixels_of(photograph(30, 30))
    assert fitted(photo, (30, 30)) is photo
    assert torch.equal(fitted(photo, (30, 30), 0.5), fitted(photo, (60, 60))[:, 15:45, 15:45])


def test_what_is_kept_depends_on_cut_and_interpolation(photographs: Path, own_caches: Path) -> None:
    plain, cut, cubic = (built(photographs, **options) for options in ({}, {"crop": 0.5}, {"interpolation": "bicubic"}))
    assert len(list((own_caches / "edgetrain" / "images").iterdir())) == 3
    images = [data.samples("test")[0][0] for data in (plain, cut, cubic)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert cut.preprocessing()["other_sizes"].startswith("scaled to cover the size over 0.5, rounded down, bilinear")
    assert plain.preprocessing()["other_sizes"].startswith("scaled to cover the size, bilinear")


# At random from the originals


def test_random_crops_are_torchvisions_of_the_original_seeded_by_the_images_key(photographs: Path) -> None:
    data = built(photographs, random_resized_crop=[0.08, 1.0], interpolation="bicubic", seed=3)
    samples = data.training_samples()
    samples.epoch = 2
    together = samples.__getitems__([5, 40, 7])
    transform = v2.RandomResizedCrop(
        (24, 24), (0.08, 1.0), (3 / 4, 4 / 3), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    for (image, label), index, key in zip(together, (5, 40, 7), mixed(keys_of(3, 2, [5, 40, 7]) + CROP), strict=True):
        stored = data.splits["train"].items[index]
        torch.manual_seed(int(key.astype(np.int64)))
        original = pixels_of(np.asarray(Pillow.open(data.open(stored))))
        assert min(original.shape[1:]) >= 30  # not what the cache has
        assert torch.equal(image, data.normalised(transform(original)[None])[0])
        assert label == stored.label


def test_a_random_crop_is_another_at_every_epoch_and_does_not_depend_on_its_batch(photographs: Path) -> None:
    data = built(photographs, random_resized_crop=[0.2, 0.8])
    samples = data.training_samples()
    first = samples.__getitems__(list(range(12)))
    assert all(torch.equal(samples[index][0], image) for index, (image, _) in enumerate(first))
    samples.epoch = 1
    assert not any(torch.equal(samples[index][0], image) for index, (image, _) in enumerate(first))
    assert torch.equal(data.samples("train")[3][0], built(photographs).samples("train")[3][0])  # others as ever


def test_areas_and_proportions_of_crops_are_drawn_within_their_bounds() -> None:
    """Area uniform in 0.08 to 1, proportions log-uniform in 3/4 to 4/3, of an image that has room for all."""
    transform = resized_crop((8, 8), [0.08, 0.5], "bilinear")
    drawn = [transform.make_params([torch.zeros(3, 400, 400)]) for _ in range(2000)]
    areas = np.array([each["height"] * each["width"] / 160_000 for each in drawn])
    ratios = np.log([each["width"] / each["height"] for each in drawn])
    assert 0.075 < areas.min() < 0.1 and 0.48 < areas.max() < 0.505
    assert areas.mean() == pytest.approx(0.29, abs=4 * 0.42 / (12 * 2000) ** 0.5)
    assert np.abs(ratios).max() < np.log(4 / 3) + 0.02
    assert ratios.mean() == pytest.approx(0, abs=4 * 2 * np.log(4 / 3) / (12 * 2000) ** 0.5)


# Of what the model gets


def test_erased_pixels_are_noise_after_the_normalisation(photographs: Path) -> None:
    """timm's pixel mode: a quarter of the images lose 2 to 33 % of their area to N(0, 1)."""
    erasing = RandomNoiseErasing(0.25)
    plain, erased = (built(photographs, size=[32, 32], input_augmentation=each) for each in ([], [erasing]))
    changed, noise = 0, []
    for epoch in range(12):
        both = [data.training_samples() for data in (plain, erased)]
        for samples in both:
            samples.epoch = epoch
        one, other = (torch.stack([image for image, _ in each.__getitems__(list(range(50)))]) for each in both)
        where = (one != other).any(1)
        for image, place in zip(other, where, strict=True):
            if place.any():
                changed += 1
                assert 0.01 < place.float().mean() < 0.36
                noise.append(image[:, place].flatten())
    values = torch.cat(noise)
    assert changed / 600 == pytest.approx(0.25, abs=4 * (0.1875 / 600) ** 0.5)
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert values.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(plain.samples("train")[0][0], erased.samples("train")[0][0])


def test_what_is_erased_is_another_for_every_image_and_epoch_and_the_same_again(photographs: Path) -> None:
    plain, erased = (
        built(photographs, input_augmentation=each).training_samples() for each in ([], [RandomNoiseErasing(1)])
    )

    def places(epoch: int, index: int) -> bytes:
        plain.epoch = erased.epoch = epoch
        return (plain[index][0] != erased[index][0]).numpy().tobytes()

    assert places(0, 3) == places(0, 3)
    assert len({places(epoch, index) for epoch in range(4) for index in range(4)}) == 16


def test_inputs_draw_apart_from_augmentation(photographs: Path) -> None:
    keys = keys_of(0, 0, range(100))
    assert len(np.unique(np.concatenate([keys, keys + np.uint64(1), keys + CROP, keys + INPUTS]))) == 400


# Which split is judged


def test_another_split_may_be_the_one_that_is_judged(tmp_path: Path) -> None:
    data = build(
        compose(["recipe=hrvit_b1_imagenet"]).data | {"path": str(write_imagenet(tmp_path / "i")), "workers": 0}
    )
    data.prepare_data()
    assert {name: len(split.items) for name, split in data.splits.items()} == pytest.approx(
        {"train": 76, "validation": 4, "test": 8}, abs=4
    )
    assert data.facts()["test"]["samples"] == 8
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 3, 224, 224)
    assert labels.max() < 1000
    files = write_files(tmp_path / "files", {"train": range(60), "val": range(60, 64)})
    assert built(files).facts()["test"]["samples"] == 12


@pytest.mark.parametrize(("split", "known"), [("vali", "validation"), ("train", "validation")])
def test_a_split_that_is_not_there_is_a_sentence(photographs: Path, split: str, known: str) -> None:
    with pytest.raises(UserError, match=f"data.test_split={split} is no held-out split of .*; it has {known}"):
        built(photographs, test_split=split)


# Hashes of a large set


def test_hashes_of_a_large_set_are_kept_until_it_changes(
    tmp_path: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(tmp_path / "many", {"train": rows_of(range(20)), "validation": rows_of(range(20, 22))})
    small = built(folder, size=[8, 8])
    kept = own_caches / "edgetrain" / "image_keys"
    assert not kept.exists()
    monkeypatch.setattr("edgetrain.data.images_keys.MANY", 50)
    first = built(folder, size=[8, 8])
    known = {each.content: each.key for each in small.splits["test"].items}  # those of train would be missed
    assert len(list(kept.iterdir())) == 1  # train alone is large
    with monkeypatch.context() as patched:
        patched.setattr(ImageData, "_keys", lambda self, split, where: (known[split, row] for row in range(len(where))))
        again = built(folder, size=[8, 8])
        for name, split in small.splits.items():
            assert [each.key for each in split.items] == [each.key for each in again.splits[name].items]
        assert first.facts() == small.facts()
    write_images(folder, {"train": rows_of(range(1, 21)), "validation": rows_of(range(20, 22))})
    assert built(folder, size=[8, 8]).facts()["corpus_sha256"] != small.facts()["corpus_sha256"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crop": 0.0}, "data.crop=0.0 is outside 0 to 1"),
        ({"crop": 1.1}, "data.crop=1.1 is outside 0 to 1"),
        ({"random_resized_crop": [0.5]}, r"data.random_resized_crop=\[0.5\] is not the smallest and largest share"),
        ({"random_resized_crop": [0.5, 0.2]}, r"data.random_resized_crop=\[0.5, 0.2\] is not"),
        ({"random_resized_crop": [0.0, 1.0]}, r"data.random_resized_crop=\[0.0, 1.0\] is not"),
        ({"input_augmentation": [v2.ToDtype(torch.uint8)]}, r"data.input_augmentation.0 \(ToDtype\) makes torch.uint8"),
    ],
)
def test_settings_out_of_range_are_a_sentence(photographs: Path, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        built(photographs, **options)
