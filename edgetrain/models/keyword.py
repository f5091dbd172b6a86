"""Keyword spotting networks by family and size, each sized for a class of microcontroller.

Zhang, Suda, Lai & Chandra 2017, "Hello Edge" (arXiv 1711.07128): seven families that fit 80, 200 or 500 KB. Sizes are
those of the code that was released with the paper (Apache-2.0).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edgetrain.errors import UserError, listing, nearest
from edgetrain.models.keyword_convolutional import CNN, DNN, DSCNN
from edgetrain.models.keyword_network import KeywordNetwork
from edgetrain.models.keyword_recurrent import CRNN, GRUNetwork, LSTMNetwork

FAMILIES: dict[str, type[KeywordNetwork]] = {
    "dnn": DNN,
    "cnn": CNN,
    "basic_lstm": LSTMNetwork,
    "lstm": LSTMNetwork,
    "gru": GRUNetwork,
    "crnn": CRNN,
    "ds_cnn": DSCNN,
}

# Arguments of those classes. A convolution is channels, kernel and stride, each over frames and then coefficients.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "dnn": {
        "s": {"widths": (144, 144, 144)},
        "m": {"widths": (256, 256, 256)},
        "l": {"widths": (436, 436, 436)},
    },
    "cnn": {
        "s": {"first": (28, 10, 4, 1, 1), "second": (30, 10, 4, 2, 1), "low_rank": 16, "hidden": 128},
        "m": {"first": (64, 10, 4, 1, 1), "second": (48, 10, 4, 2, 1), "low_rank": 16, "hidden": 128},
        "l": {"first": (60, 10, 4, 1, 1), "second": (76, 10, 4, 2, 1), "low_rank": 58, "hidden": 128},
    },
    "basic_lstm": {"s": {"cells": 118}, "m": {"cells": 214}, "l": {"cells": 344}},
    "lstm": {
        "s": {"cells": 144, "projection": 98},
        "m": {"cells": 280, "projection": 130},
        "l": {"cells": 500, "projection": 188},
    },
    "gru": {"s": {"cells": 154}, "m": {"cells": 250}, "l": {"cells": 400}},
    "crnn": {
        "s": {"first": (48, 10, 4, 2, 2), "layers": 2, "cells": 60, "hidden": 84},
        "m": {"first": (128, 10, 4, 2, 2), "layers": 2, "cells": 76, "hidden": 164},
        "l": {"first": (100, 10, 4, 2, 1), "layers": 2, "cells": 136, "hidden": 188},
    },
    "ds_cnn": {
        "s": {"first": (64, 10, 4, 2, 2), "blocks": ((64, 3, 3, 1, 1),) * 4},
        "m": {"first": (172, 10, 4, 2, 1), "blocks": ((172, 3, 3, 2, 2), *((172, 3, 3, 1, 1),) * 3)},
        "l": {"first": (276, 10, 4, 2, 1), "blocks": ((276, 3, 3, 2, 2), *((276, 3, 3, 1, 1),) * 4)},
    },
}

COARSE = {("dnn", "s"), ("dnn", "m"), ("dnn", "l"), ("lstm", "s"), ("gru", "s")}


def stride_ms(family: str, size: str) -> int:
    """The paper's stride from frame to frame: 40 ms (25 frames a second) or 20 ms (49)."""
    return 40 if (family, size) in COARSE else 20


def keyword(
    family: str,
    size: str = "s",
    shape: Mapping[str, Any] | None = None,
    classes: int = 12,
    frames: int = 49,
    coefficients: int = 10,
    front_end: bool = False,
    window_ms: float = 40,
    stride_ms: float = 20,
) -> KeywordNetwork:
    """A network of a family (`FAMILIES`) in size s, m or l, or of a shape of one's own: arguments as in `SIZES`.

    Any frames and coefficients work that its kernels fit into; the paper's are 10 coefficients and frames every
    `stride_ms(family, size)`. The other arguments are KeywordNetwork's. Raises UserError for an unknown family or size
    and a shape that is not the family's.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family={family} is not one of {listing(FAMILIES)}{nearest(family, FAMILIES)}")
    if size not in SIZES[family]:
        raise UserError(f"model.size={size} is not one of {listing(SIZES[family])}; model.shape says one of your own")
    arguments = SIZES[family][size] if shape is None else dict(shape)
    network = {"classes": classes, "frames": frames, "coefficients": coefficients}
    inputs = {"front_end": front_end, "window_ms": window_ms, "stride_ms": stride_ms}
    example = SIZES[family]["s"]
    wrong = UserError(f"model.shape={arguments} is not a {family}'s; give {listing(example)}, as in {example}")
    if not all(is_alike(value, example.get(key, 1)) for key, value in arguments.items()):
        raise wrong
    try:
        return FAMILIES[family](**arguments, **network, **inputs)
    except TypeError as error:
        raise wrong from error
    except ValueError as error:
        raise UserError(
            f"model.family={family} cannot take {frames} frames of {coefficients} coefficients: {error}; "
            "use a smaller data.stride_ms or a model with smaller kernels"
        ) from error


def ds_cnn(
    channels: int = 64,
    blocks: int = 4,
    kernel: Sequence[int] = (10, 4),
    stride: Sequence[int] = (2, 2),
    block_stride: int = 1,
    classes: int = 12,
    frames: int = 49,
    coefficients: int = 10,
    front_end: bool = False,
    window_ms: float = 40,
    stride_ms: float = 20,
) -> KeywordNetwork:
    """A DS-CNN by its hyperparameters one by one, as a search varies them.

    channels: of every convolution; kernel, stride: of the first one, over frames and coefficients; block_stride: of the
    first block, both ways. The other arguments are those of `keyword`. Channels, blocks, stride and block_stride of
    `SIZES` are 64, 4, (2, 2), 1 for s; 172, 4, (2, 1), 2 for m; 276, 5, (2, 1), 2 for l. Raises UserError for what is
    no whole number from 1.
    """
    numbers = {"channels": channels, "blocks": blocks, "kernel": kernel, "stride": stride, "block_stride": block_stride}
    for name, value in numbers.items():
        pair = name in ("kernel", "stride")
        if not is_alike(value, (1, 1) if pair else 1) or (pair and len(value) != 2):
            raise UserError(f"model.{name}={value} must be {'two whole numbers' if pair else 'a whole number'} from 1")
    first = (channels, *kernel, *stride)
    depthwise = [(channels, 3, 3, step, step) for step in (block_stride, *[1] * (blocks - 1))]
    shape = {"first": first, "blocks": depthwise}
    inputs = {"front_end": front_end, "window_ms": window_ms, "stride_ms": stride_ms}
    return keyword("ds_cnn", shape=shape, classes=classes, frames=frames, coefficients=coefficients, **inputs)


def is_alike(given: Any, example: Any) -> bool:
    """Whether it is made like the example: a whole number from 1, a convolution's five, a list of any such."""
    if isinstance(example, int):
        return isinstance(given, int) and given >= 1
    if not isinstance(given, list | tuple) or (len(example) == 5 and len(given) != 5):
        return False
    return all(is_alike(item, example[0]) for item in given)
