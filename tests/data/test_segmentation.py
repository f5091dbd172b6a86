"""Images with a class a pixel: what a batch holds, splits, resume, facts, and the real CamVid where it is."""

from collections import Counter
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from image_sets import encoded
from lightning.pytorch.callbacks import ModelCheckpoint
from segmentation_sets import VOID, classes_of, pair, pairs, picture, write_camvid, write_pairs
from torch import nn

from edgetrain.build import build, check_classes, check_shape
from edgetrain.compose import compose
from edgetrain.data import segmentation_store
from edgetrain.data.images_augmentation import keys_of
from edgetrain.data.segmentation import SegmentationData
from edgetrain.data.segmentation_augmentation import draws_of
from edgetrain.data.segmentation_samples import runs
from edgetrain.errors import UserError
from edgetrain.methods.calibration import draw

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images for training, 6 and 7 held out, 16 x 12."""
    splits = {"train": pairs(range(40)), "validation": pairs(range(50, 56)), "test": pairs(range(60, 67))}
    return write_pairs(tmp_path_factory.mktemp("scenes"), splits)


def built(folder: Path, **options) -> SegmentationData:
    settings = {"num_classes": 3, "void": [VOID], "size": [8, 8], "batch_size": 8, "mean": MEAN, "std": STD}
    data = SegmentationData(path=str(folder), **(settings | options))
    data.prepare_data()
    data.setup("fit")
    return data


def refusal(folder: Path, **options) -> str:
    with pytest.raises(UserError) as raised:
        built(folder, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What a batch holds


def test_evaluation_compares_with_the_classes_of_the_file(scenes: Path):
    data = built(scenes, scale=[6, 8])
    batches = list(data.test_dataloader())
    assert [(tuple(images.shape), tuple(classes.shape)) for images, classes in batches] == [((7, 3, 6, 8), (7, 12, 16))]
    images, classes = batches[0]
    assert (images.dtype, classes.dtype) == (torch.float32, torch.int64)
    for place in range(7):
        values = classes_of(60 + place).astype(int)
        assert np.array_equal(classes[place], np.where(values == VOID, 255, values))
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(picture(values, 60 + place)).permute(2, 0, 1)[None].float(),
            (6, 8),
            mode="bilinear",
            antialias=True,
        )[0]
        expected = (theirs / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        assert (images[place] - expected).abs().max() < 1.01 / 255 / min(STD)


def test_without_a_scale_an_image_is_what_its_file_holds(scenes: Path):
    data = built(scenes)
    images, _ = next(iter(data.val_dataloader()))
    expected = (picture(classes_of(50), 50) / 255 - MEAN) / STD
    assert np.allclose(images[0].permute(1, 2, 0), expected, atol=1e-5)
    assert np.array_equal(data.denormalised(images)[0].permute(1, 2, 0), picture(classes_of(50), 50))
    assert data.denormalised(images).dtype == torch.uint8


def test_training_items_are_cut_padded_and_normalised(scenes: Path):
    data = built(scenes, size=[14, 10], ratio_range=[1.0, 1.0], flip=0.0, photometric=False, category_max_ratio=1.0)
    image, classes = data.training_samples()[5]
    draws = draws_of(keys_of(0, 0, [5]))[0]
    left = int(draws[12] * 7)  # of an image of 16 columns, cut to 10: the second draw of the first cut
    values = classes_of(5)[:, left : left + 10]
    assert np.array_equal(classes[:12], np.where(values == VOID, 255, values))
    assert (classes[12:] == 255).all()  # below is nothing
    expected = (picture(classes_of(5), 5)[:, left : left + 10] / 255 - MEAN) / STD
    assert np.allclose(image[:, :12].permute(1, 2, 0), expected, atol=1e-5)
    assert (image[:, 12:] == 0).all()  # the mean colour


def test_training_draws_anew_in_every_epoch_and_depends_on_nothing_else(scenes: Path):
    data = built(scenes)
    samples = data.training_samples()
    together = samples.__getitems__(list(range(20)))
    for index, (image, classes) in enumerate(together):
        assert torch.equal(samples[index][0], image)
        assert torch.equal(samples[index][1], classes)
    samples.epoch = 1
    assert sum(torch.equal(samples[index][0], image) for index, (image, _) in enumerate(together)) < 3
    other = built(scenes, seed=1).training_samples()
    assert sum(torch.equal(other[index][0], image) for index, (image, _) in enumerate(together)) < 3


def test_image_and_classes_agree_after_the_whole_pipeline(scenes: Path):
    """Blocks of a colour a class: away from their edges a pixel's colour tells its class, which is the one it has."""
    data = built(scenes, mean=[0.0] * 3, std=[1.0] * 3, photometric=False, ratio_range=[1.0, 2.0], size=[16, 16])
    agreed = []
    for images, classes in data.train_dataloader():
        colours = torch.tensor([[40, 80, 120], [200, 60, 30], [90, 220, 140]]) / 255
        nearest = (images[:, None] - colours[None, :, :, None, None]).abs().sum(2).argmin(1)
        counted = classes != 255
        agreed.append((nearest == classes)[counted].float().mean())
    assert np.mean(agreed) > 0.93
    calm = built(scenes, photometric=False, ratio_range=[1.0, 1.0], mean=[0.0] * 3, std=[1.0] * 3)
    image, classes = calm.training_samples()[0]
    nearest = (image[None] - colours[:, :, None, None]).abs().sum(1).argmin(0)
    assert ((nearest == classes) | (classes == 255)).sum() >= 63  # but for the pixel that tells the take


def test_samples_of_train_are_cut_around_the_centre(scenes: Path):
    data = built(scenes, mean=[0.0] * 3, std=[1.0] * 3)
    image, classes = data.samples("train")[3]
    assert np.array_equal(classes, classes_of(3)[2:10, 4:12])
    assert np.allclose(image.permute(1, 2, 0) * 255, picture(classes_of(3))[2:10, 4:12], atol=1e-4)
    assert torch.equal(
        draw(data, 8, 0).inputs[0], draw(built(scenes, mean=[0.0] * 3, std=[1.0] * 3, flip=1.0), 8, 0).inputs[0]
    )


def test_neighbours_of_one_size_share_a_batch(tmp_path: Path):
    assert runs([(1, 1)] * 5 + [(2, 1)] + [(1, 1)] * 2, 4) == [range(0, 4), range(4, 5), range(5, 6), range(6, 8)]
    held_out = [pair(take, height=12 + 2 * (take % 6 > 2), width=16) for take in range(60, 72)]
    folder = write_pairs(
        tmp_path / "sizes", {"train": pairs(range(9)), "validation": held_out[:5], "test": held_out[5:]}
    )
    data = built(folder, batch_size=2)
    shapes = [tuple(classes.shape) for _, classes in data.test_dataloader()]
    assert shapes == [(1, 14, 16), (2, 12, 16), (1, 12, 16), (2, 14, 16), (1, 14, 16)]
    in_order = torch.cat([classes.flatten() for _, classes in data.test_dataloader()])
    assert torch.equal(in_order, torch.cat([data.samples("test")[place][1].flatten() for place in range(7)]))


# Resume


class Recorder(lightning.LightningModule):
    """Learns nothing; remembers its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[bytes] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        self.seen.append(batch[0].numpy().tobytes() + batch[1].numpy().tobytes())
        return self.layer(torch.zeros(1, 1)).sum()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("stop", [3, 5, 7])  # within an epoch of 5 batches, at its end, and in the next
def test_a_resumed_run_sees_the_same_batches_bit_for_bit(scenes: Path, tmp_path: Path, stop: int):
    def train(steps: int, resume: Path | None = None) -> list[bytes]:
        model = Recorder()
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[ModelCheckpoint(tmp_path / str(steps), every_n_train_steps=1, save_last=True)],
        )
        trainer.fit(model, built(scenes), ckpt_path=resume, weights_only=True)
        return model.seen

    whole = train(12)
    assert len(set(whole)) == 12
    assert train(stop) == whole[:stop]
    assert train(12, tmp_path / str(stop) / "last.ckpt") == whole[stop:]


def test_workers_read_the_same_batches(scenes: Path):
    def two_epochs(workers: int) -> list[bytes]:
        data = built(scenes, workers=workers)
        loader = data.train_dataloader()
        train = [each.numpy().tobytes() for _ in range(2) for batch in loader for each in batch]
        return train + [each.numpy().tobytes() for batch in data.test_dataloader() for each in batch]

    assert two_epochs(1) == two_epochs(0)


def test_a_set_too_large_for_the_cache_gives_the_same(scenes: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch):
    small = built(scenes, mean=None, std=None)
    cached = sorted(path.name for path in (own_caches / "edgetrain" / "segmentation").iterdir())
    assert [name.rpartition(".")[2] for name in cached] == ["npy", "npz"]
    monkeypatch.setenv("EDGETRAIN_CACHE", str(own_caches / "other"))
    monkeypatch.setattr(segmentation_store, "LARGEST_CACHE", 1000)
    large = built(scenes, mean=None, std=None)
    assert [path.suffix for path in (own_caches / "other" / "segmentation").iterdir()] == [".npz"]
    assert large.facts() == small.facts()
    for one, other in zip(small.train_dataloader(), large.train_dataloader(), strict=True):
        assert all(map(torch.equal, one, other))


def test_what_is_cached_is_read_once_and_made_again_for_other_classes(
    scenes: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
):
    first = built(scenes)
    again = built(scenes, seed=4, size=[4, 4], scale=[3, 4], labels=["a", "b", "c"])  # nothing of that is in it
    folder = own_caches / "edgetrain" / "segmentation"
    assert len(list(folder.iterdir())) == 2
    assert np.array_equal(first.read("train", 0)[0], again.read("train", 0)[0])
    other = built(scenes, label_map={0: 1, 1: 0, 2: 2})
    assert len(list(folder.iterdir())) == 4
    assert other.class_pixels("train").tolist() == [first.class_pixels("train").tolist()[place] for place in (1, 0, 2)]
    next(folder.glob("*.npy")).unlink()
    assert np.array_equal(built(scenes).read("train", 0)[1], first.read("train", 0)[1])
    assert np.array_equal(built(scenes, label_map={0: 1, 1: 0, 2: 2}).read("train", 0)[1], other.read("train", 0)[1])


# Splits


def test_nothing_is_in_two_splits(tmp_path: Path):
    """Byte by byte; the label image does not matter."""
    other = pair(3) | {"label": {"bytes": encoded(np.zeros((12, 16), np.uint8)), "path": None}}
    splits = {"train": pairs(range(8)), "validation": [*pairs(range(2)), pair(20)], "test": [other, pair(20), pair(21)]}
    data = built(write_pairs(tmp_path / "double", splits))
    assert [(len(split.items), split.dropped) for split in data.splits.values()] == [(8, 0), (1, 2), (1, 2)]
    assert "test: 2 images dropped because an earlier split holds them" in data.preview().notes


def test_a_missing_split_is_cut_from_train_by_content(tmp_path: Path):
    folder = write_pairs(tmp_path / "train", {"train": [*pairs(range(80)), *pairs(range(80))]})
    data = built(folder)
    keys = {name: {pair.key for pair in split.items} for name, split in data.splits.items()}
    assert [len(split.items) for split in data.splits.values()] == [2 * len(each) for each in keys.values()]
    assert len(set.union(*keys.values())) == 80
    assert data.facts()["test_is"] == "a part of train, by a hash of each image"
    standing = built(folder, test="validation")
    assert {pair.key for pair in standing.splits["train"].items} == keys["train"] | keys["test"]
    assert standing.splits["test"] == standing.splits["validation"]


def test_a_limit_reads_no_more_than_it_keeps(scenes: Path):
    data = built(scenes, limit=3)
    assert [len(split.items) for split in data.splits.values()] == [3, 3, 3]
    assert len(data.store.sizes) == 9


def test_a_single_image_trains_where_the_others_are_there_and_is_refused_alone(tmp_path: Path):
    splits = {"train": pairs(range(1)), "validation": pairs(range(1, 2)), "test": pairs(range(2, 3))}
    data = built(write_pairs(tmp_path / "single", splits))
    images, classes = next(iter(data.train_dataloader()))
    assert (images.shape, classes.shape) == ((1, 3, 8, 8), (1, 8, 8))
    assert "has no images; give more of them" in refusal(write_pairs(tmp_path / "alone", {"train": pairs(range(1))}))
    same = {name: pairs(range(1)) for name in splits}
    assert "the validation split of data.path" in refusal(write_pairs(tmp_path / "same", same))


def test_images_that_are_all_void_are_counted_and_a_split_of_them_is_refused(tmp_path: Path):
    void = [pair(take, np.full((12, 16), VOID, np.uint8)) for take in range(100, 103)]
    splits = {"train": [*pairs(range(4)), *void], "validation": pairs(range(20, 22)), "test": pairs(range(30, 32))}
    data = built(write_pairs(tmp_path / "void", splits))
    assert "train: 3 label images are all void; nothing of them is counted" in data.preview().notes
    image, classes = data.training_samples()[5]
    assert (classes == 255).all()
    assert torch.isfinite(image).all()
    said = refusal(write_pairs(tmp_path / "all", {"train": void[:1], "validation": void[1:2], "test": void[2:]}))
    assert "no pixel of the train split" in said
    assert "all 1 label images are void" in said


def test_classes_without_a_pixel_are_said(tmp_path: Path):
    splits = {
        name: pairs(range(start, start + 3), classes=2)
        for name, start in (("train", 0), ("validation", 5), ("test", 9))
    }
    data = built(write_pairs(tmp_path / "two", splits), void=[], num_classes=4, labels=["a", "b", "edge", "never"])
    assert data.facts()["empty_classes"] == ["never"]
    assert "train: classes without a pixel, which cannot be learned: never" in data.preview().notes


# What is said of it


def test_facts_are_counted_by_hand(scenes: Path):
    data = built(scenes, mean=None, std=None, labels=["a", "b", "c"])
    facts = data.facts()
    counts = {
        name: Counter(np.concatenate([classes_of(take)[:-1].ravel() for take in takes]).tolist())
        for name, takes in (("train", range(40)), ("test", range(60, 67)))
    }
    for name, counted in counts.items():
        assert data.class_pixels(name).tolist() == [counted[0], counted[1], counted[2]]
        assert facts["class_pixels"][name] == pytest.approx(
            {label: counted[place] / counted.total() for place, label in enumerate("abc")}
        )
    most = counts["train"].most_common(1)[0][0]
    share = counts["test"][most] / counts["test"].total()
    assert facts["majority"] == pytest.approx(share)
    assert facts["majority_mean_iou"] == pytest.approx(share / 3)  # the others' IoU is 0
    assert facts["chance"] == pytest.approx(1 / 3)
    pixels = np.stack([picture(classes_of(take), take) for take in range(40)]).reshape(-1, 3) / 255
    assert facts["mean"] == pytest.approx(pixels.mean(0).tolist(), abs=5.1e-5)
    assert facts["std"] == pytest.approx(pixels.std(0).tolist(), abs=5.1e-5)
    assert facts["test_is"] == "the set's own"
    assert yaml.safe_load(yaml.safe_dump(data.preprocessing())) == data.preprocessing()
    assert built(scenes, label_map={0: 1, 1: 0, 2: 2}).facts()["corpus_sha256"] != facts["corpus_sha256"]
    assert built(scenes, seed=3).facts()["corpus_sha256"] == facts["corpus_sha256"]


def test_a_preview_shows_sizes_classes_and_shares(scenes: Path):
    data = built(scenes)
    preview = data.preview(4)
    assert len(preview.samples) == 4
    assert all(sample.startswith("16x12  ") and " classes row " in sample for sample in preview.samples)
    order = [int(sample.split("row ")[1].split()[0]) for sample in preview.samples]
    assert order == list(data.train_dataloader().sampler)[:4]
    assert [row["images"] for row in preview.splits] == [40, 6, 7]
    assert sum(value for key, value in preview.splits[0].items() if key.endswith("%")) == pytest.approx(100, abs=0.01)
    assert [row["repeats"] for row in preview.duplicates] == [0, 0, 0]
    assert preview.lengths["test"].tolist() == [12] * 7


def test_a_preview_of_many_classes_says_their_extremes(tmp_path: Path):
    splits = {
        name: pairs(range(start, start + 4), classes=25)
        for name, start in (("train", 0), ("validation", 5), ("test", 9))
    }
    rows = built(write_pairs(tmp_path / "many", splits), num_classes=25, void=[25]).preview().splits
    assert rows[0].keys() == {"split", "images", "classes", "rarest %", "most %"}


class Network(nn.Module):
    num_classes, input_shape = 3, (3, 8, 8)


def test_the_models_shape_and_classes_are_checked(scenes: Path):
    data = built(scenes)
    check_shape(Network(), data)
    check_classes(Network(), data, {})
    with pytest.raises(UserError, match="the model takes inputs of"):
        check_shape(Network(), built(scenes, size=[8, 6]))
    with pytest.raises(UserError, match="model.num_classes is 3, but data.num_classes=4"):
        check_classes(Network(), built(scenes, num_classes=4), {})
    assert data.labels == ["class 0", "class 1", "class 2"]
    assert data.palette == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": [8]}, r"data.size=\[8\] is not a height and a width"),
        ({"size": [0, 8]}, r"data.size=\[0, 8\]"),
        ({"scale": [8, 0]}, r"data.scale=\[8, 0\]"),
        ({"ratio_range": [0.0, 2.0]}, r"data.ratio_range=\[0.0, 2.0\] is not the least and the largest"),
        ({"ratio_range": [2.0, 1.0]}, r"data.ratio_range=\[2.0, 1.0\]"),
        ({"category_max_ratio": 0.0}, "data.category_max_ratio=0.0 is no share"),
        ({"flip": 1.5}, "data.flip=1.5 is no probability"),
        ({"labels": ["a", "b"]}, "data.labels has 2 entries for data.num_classes=3"),
        ({"labels": ["a", "b", "b"]}, "data.labels names b twice"),
        ({"palette": [[0, 0, 0]]}, "data.palette has 1 entries for data.num_classes=3"),
        ({"palette": [[0, 0, 0], [0, 0, 0], [0, 0, 256]]}, r"data.palette holds \[0, 0, 256\]"),
        ({"num_classes": 0}, "data.num_classes=0 leaves nothing"),
        ({"batch_size": 0}, "data.batch_size=0 holds no image"),
        ({"std": [1.0, 0.0, 1.0]}, "is divided by; every number of it is above 0"),
        ({"mean": [1.0]}, r"data.mean=\[1.0\] has 1 numbers for data.channels=3"),
    ],
)
def test_settings_out_of_range_are_a_sentence(scenes: Path, options: dict, sentence: str):
    with pytest.raises(UserError, match=sentence) as raised:
        built(scenes, **options)
    assert "\n" not in str(raised.value)


# The option and the real set


def test_the_option_camvid_reads_a_set_of_its_form(tmp_path: Path):
    node = compose(["recipe=cmsis_cifar10", "data=camvid"]).data
    data = build(node | {"path": str(write_camvid(tmp_path / "camvid"))})
    data.prepare_data()
    assert [data.facts()[name]["samples"] for name in data.splits] == [16, 4, 4]
    images, classes = next(iter(data.train_dataloader()))
    assert (images.shape, classes.shape) == ((8, 3, 96, 128), (8, 96, 128))
    assert set(classes.unique().tolist()) <= {*range(11), 255}
    images, classes = next(iter(data.test_dataloader()))
    assert (images.shape, classes.shape) == ((4, 3, 96, 128), (4, 45, 60))


def test_camvid_is_what_is_published(shared_data: Path | None, monkeypatch: pytest.MonkeyPatch):
    """367, 101 and 233 images of 480x360 with 11 classes, and the option's mean and std."""
    if shared_data is None or not (shared_data / "camvid").is_dir():
        pytest.skip("set EDGETRAIN_DATA to a folder that holds camvid")
    monkeypatch.setenv("EDGETRAIN_DATA", str(shared_data))
    node = compose(["recipe=cmsis_cifar10", "data=camvid"]).data
    data = build(node | {"mean": None, "std": None})
    data.prepare_data()
    facts = data.facts()
    assert [facts[name] for name in data.splits] == [{"samples": size, "dropped": 0} for size in (367, 101, 233)]
    assert data.store.sizes.tolist() == [[360, 480]] * 701
    assert facts["empty_classes"] == []
    assert (facts["mean"], facts["std"]) == (node["mean"], node["std"])
    assert facts["class_pixels"]["train"]["road"] == pytest.approx(0.3296, abs=1e-4)
    assert data.store.pixels.sum() == 701 * 360 * 480
    loader = data.train_dataloader()
    for _ in range(2):
        images, classes = next(iter(loader))
        assert (images.shape, classes.shape) == ((8, 3, 96, 128), (8, 96, 128))
    images, classes = next(iter(data.val_dataloader()))
    assert (images.shape, classes.shape) == ((8, 3, 96, 128), (8, 360, 480))
    assert torch.isfinite(images).all()
