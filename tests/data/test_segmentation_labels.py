"""What a value of a label image stands for: the conventions, against slow references, and what they refuse."""

import numpy as np
import pytest
import yaml
from conftest import ROOT

from edgetrain.data.segmentation_labels import LabelMap, palette_of
from edgetrain.errors import UserError


def option(name: str) -> dict:
    return yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text())


def mapping(name: str) -> LabelMap:
    keys = ("label_map", "reduce_zero_label", "void", "ignore_index")
    node = option(name)
    return LabelMap("it", node["num_classes"], *(node[key] for key in keys))


def test_classes_and_their_pixels_are_those_of_a_loop_over_pixels():
    values = np.random.default_rng(0).integers(0, 5, (7, 9)).astype(np.uint8)
    classes, pixels = LabelMap("it", 3, {0: 2, 1: None, 2: 0, 4: 1}, void=[3], ignore_index=9)(values, "x")
    meant = {0: 2, 1: 9, 2: 0, 3: 9, 4: 1}
    counts = [0, 0, 0, 0]
    for row in range(7):
        for column in range(9):
            expected = meant[int(values[row, column])]
            assert classes[row, column] == expected
            counts[min(expected, 3)] += 1
    assert pixels.tolist() == counts
    assert classes.dtype == np.uint8


def test_reduce_zero_label_is_what_transformers_does():
    """SegformerImageProcessor's do_reduce_labels: 0 becomes 255, others one less, 254 becomes 255."""
    from transformers import SegformerImageProcessor

    values = np.arange(151, dtype=np.uint8).reshape(1, 151)
    processor = SegformerImageProcessor(do_reduce_labels=True, do_resize=False)
    theirs = processor(np.zeros((3, 1, 151), np.uint8), segmentation_maps=values, return_tensors="np")["labels"]
    classes, _ = mapping("ade20k")(values, "x")
    assert np.array_equal(np.asarray(theirs).reshape(1, 151), classes)


def test_the_19_train_ids_of_cityscapes_are_the_official_ones():
    """cityscapesscripts/helpers/labels.py: name, id and trainId of what is evaluated; all other ids are ignored."""
    official = [
        *[("road", 7), ("sidewalk", 8), ("building", 11), ("wall", 12), ("fence", 13), ("pole", 17)],
        *[("traffic light", 19), ("traffic sign", 20), ("vegetation", 21), ("terrain", 22), ("sky", 23)],
        *[("person", 24), ("rider", 25), ("car", 26), ("truck", 27), ("bus", 28), ("train", 31)],
        *[("motorcycle", 32), ("bicycle", 33)],
    ]
    assert option("cityscapes")["labels"] == [name for name, _ in official]
    values = np.arange(34, dtype=np.uint8).reshape(2, 17)
    classes, pixels = mapping("cityscapes")(values, "x")
    train_ids = {number: train_id for train_id, (_, number) in enumerate(official)}
    assert classes.ravel().tolist() == [train_ids.get(value, 255) for value in range(34)]
    assert pixels.tolist() == [1] * 19 + [15]


def test_void_of_camvid_is_11():
    classes, pixels = mapping("camvid")(np.array([[0, 10, 11, 11]], dtype=np.uint8), "x")
    assert classes.tolist() == [[0, 10, 255, 255]]
    assert pixels.tolist() == [1] + 9 * [0] + [1, 2]


def test_more_than_255_classes_need_16_bits():
    mapped = LabelMap("it", 847, ignore_index=65535)
    classes, pixels = mapped(np.array([[846, 0]], dtype=np.uint16), "x")
    assert classes.dtype == np.uint16
    assert classes.tolist() == [[846, 0]]
    assert pixels[846] == 1


@pytest.mark.parametrize(
    ("settings", "values", "sentence"),
    [
        (
            {},
            [0, 3],
            "data.path=it: row 1 has the value 3, which is no class of data.num_classes=3; list it in data.void",
        ),
        ({}, [255, 254, 0], "row 1 has the value 254, 255, which is no class"),
        ({"reduce_zero_label": True}, [0, 4], "row 1 has the value 4, which"),
        ({"label_map": {7: 0, 8: 1}}, [7, 9], "the value 9, which is no class that data.label_map names"),
        ({"void": [3]}, [-1, 3], "row 1 has the value -1, which"),
        ({"void": [3]}, [70_000, 3], "row 1 has the value 70000, which"),
    ],
)
def test_a_value_that_nothing_explains_is_named_with_its_file_and_what_to_set(
    settings: dict, values: list, sentence: str
):
    with pytest.raises(UserError) as raised:
        LabelMap("it", 3, **settings)(np.array([values], dtype=np.int32), "row 1")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ignore_index": 2}, "data.ignore_index=2 has to be a number that is no class: 3 to 65535"),
        ({"ignore_index": -100}, "data.ignore_index=-100"),
        ({"label_map": {0: 0}, "reduce_zero_label": True}, "both say what a value stands for"),
        ({"label_map": {0: 3}}, "data.label_map gives 0 the class 3, which is not one of 0 to 2"),
        ({"label_map": {-1: 0}}, "data.label_map names the value -1"),
        ({"void": [65536]}, "data.void names the value 65536"),
        ({"label_map": {4: 0}, "void": [4]}, "data.void names 4, which data.label_map gives the class 0"),
    ],
)
def test_settings_that_contradict_each_other_are_a_sentence(settings: dict, sentence: str):
    with pytest.raises(UserError) as raised:
        LabelMap("it", 3, **settings)
    assert sentence in str(raised.value)


def test_colours_are_those_of_pascal_voc():
    voc = [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128]]
    voc += [[64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0], [64, 0, 128], [192, 0, 128], [64, 128, 128]]
    voc += [[192, 128, 128], [0, 64, 0], [128, 64, 0], [0, 192, 0], [128, 192, 0], [0, 64, 128]]
    assert palette_of(20) == voc
    assert len({tuple(colour) for colour in palette_of(255)}) == 255
