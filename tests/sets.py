"""The data sets that recipes name: the real ones where they are, else made-up ones with the same columns."""

import os
from pathlib import Path

from audio_sets import write_fsdd, write_speech_commands
from conftest import ROOT
from image_sets import write_cifar10, write_imagenet
from segmentation_sets import write_ade20k, write_camvid, write_cityscapes


def write_hinglish_top(folder: Path) -> None:
    folder.mkdir()
    for first, name in enumerate(("train", "validation", "test")):
        rows = [
            f"play song {number}\t[IN:PLAY_MUSIC play [SL:MUSIC_TRACK song {number} ] ]"
            for number in range(first, 90, 3)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["en_query\ten_parse", *rows]))


def write_words(folder: Path) -> None:
    write_speech_commands(folder, ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "cat"])


MADE_UP = {
    "hinglish_top": write_hinglish_top,
    "fsdd": write_fsdd,
    "cifar10": write_cifar10,
    "camvid": write_camvid,
    "ADEChallengeData2016": write_ade20k,
    "cityscapes": write_cityscapes,
    "ILSVRC/imagenet-1k": write_imagenet,
    "speech_commands": write_words,
}


def sets(place: Path) -> Path:
    """A folder to be $EDGETRAIN_DATA; real sets are looked for in the present one, and in ../shared/data."""
    real = Path(os.environ.get("EDGETRAIN_DATA", ROOT.parent / "shared" / "data"))
    found = place / "sets"
    found.mkdir()
    for name, write in MADE_UP.items():
        (found / name).parent.mkdir(exist_ok=True)
        if (real / name).is_dir():
            (found / name).symlink_to(real / name)
        else:
            write(found / name)
    return found
