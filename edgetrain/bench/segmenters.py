"""What the segmentation benches compare: HRViT of ours, HRViT of a checkout of its official code, and SegFormer-B1.

Training is compared as users do it: ours with the loss of `ops/resized_cross_entropy.py`, and once with the plain one.

The official repository has the backbone; the head of its configurations is SegFormer's as mmsegmentation has it, which
brings every map to the first one's size before one layer over all of them. It is written here that way, with our
weights, so that both compute the same function.
"""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetrain.bench.fresh_process import in_fresh_process
from edgetrain.environment import resident
from edgetrain.errors import UserError
from edgetrain.folder import Row
from edgetrain.models.segmentation_heads import SegFormerHead, resized
from edgetrain.models.segmenter import Segmenter, segmenter
from edgetrain.ops.resized_cross_entropy import resized_cross_entropy

OURS, OFFICIAL, SEGFORMER = "edgetrain", "official", "transformers SegFormer-B1"
PLAIN_LOSS = "edgetrain, plain loss"  # ours trained as the others are: scores of every pixel, then their loss
BACKBONE, CLASSES, IGNORED = "hrvit_b1", 150, 255
EQUAL = 1e-6  # largest difference of a logit in float64 between two that are to compute the same
NOT_RUN = "not run"
TRAINING, INFERENCE = "training", "inference"


@dataclass(frozen=True)
class Setting:
    """size: side of the images; batch: how many; precision: 32-true or bf16-mixed; compiled: with torch.compile."""

    size: int
    batch: int
    precision: str
    compiled: bool
    official: str | None

    def __post_init__(self) -> None:
        if self.precision not in ("32-true", "bf16-mixed"):
            raise UserError(f"precision={self.precision}: choose 32-true or bf16-mixed")
        if min(self.size, self.batch) < 1:
            raise UserError(f"size={self.size} batch={self.batch}: both have to be at least 1")

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def words(self) -> str:
        compiled = ", torch.compile" if self.compiled else ""
        return f"{self.batch} images of {self.size} x {self.size}, {self.precision}{compiled}, {self.device}"

    def batch_of_noise(self) -> tuple[Tensor, Tensor]:
        """Images and labels of random classes."""
        drawn = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, generator=drawn)
        labels = torch.randint(CLASSES, (self.batch, self.size, self.size), generator=drawn)
        return images.to(self.device), labels.to(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed")


class OfficialSegmenter(nn.Module):
    """The official backbone under our head's weights, combined as its configurations have it."""

    def __init__(self, checkout: str, ours: Segmenter) -> None:
        super().__init__()
        self.backbone = official_module(checkout).HRViT_b1_224(drop_path_rate=0.0)
        self.backbone.head = nn.Identity()
        self.backbone.load_state_dict(ours.backbone.state_dict())
        self.head = PlainSegFormerHead(ours.head)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone.features((self.backbone.stem(images),))
        return resized(self.head(maps), images.shape[2:])


class PlainSegFormerHead(nn.Module):
    """SegFormer's head map by map: a linear layer, resizing, then one layer over all."""

    def __init__(self, head: SegFormerHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        linear = [layer(x) for layer, x in zip(self.head.linear_c, maps, strict=True)]
        same = [part if part.shape[2:] == size else resized(part, size) for part in linear]
        return self.head.conv_seg(self.head.dropout(self.head.linear_fuse(torch.cat(same[::-1], 1))))


class FullSize(nn.Module):
    """A model seen by its forward pass alone, which gives a score of every pixel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class UpsampledSegformer(nn.Module):
    """transformers' SegformerForSemanticSegmentation, its logits brought to the images' size."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        sizes = {"hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 256, "num_labels": CLASSES}
        self.model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, drop_path_rate=0.0))

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.model(images).logits, images.shape[2:])


def official_module(checkout: str) -> Any:
    """models/hrvit.py of a checkout: its code runs. Raises UserError when it is not there or cannot be imported."""
    path = Path(checkout).expanduser() / "models" / "hrvit.py"
    if not path.is_file():
        raise UserError(
            f"official={checkout}: there is no models/hrvit.py in it; give a checkout of facebookresearch/HRViT"
        )
    specification = importlib.util.spec_from_file_location("official_hrvit", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's, of modules that it has moved
            specification.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"official={checkout} cannot be imported: {error}; install what it asks for") from error
    return module


def builders(kind: str, setting: Setting) -> Mapping[str, Callable[[], nn.Module]]:
    """The models of `training` or `inference` by name, each built anew from seed 0; drop path is off in all."""

    def ours() -> Segmenter:
        torch.manual_seed(0)
        model = segmenter(BACKBONE, CLASSES, options={"drop_path": 0.0})
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.ones_(module.weight)  # else attention adds nothing, and an error in it would not be seen
        return model

    found: dict[str, Callable[[], nn.Module]] = {OURS: ours}
    if kind == TRAINING:
        found[PLAIN_LOSS] = lambda: FullSize(ours())
    if setting.official is not None:
        found[OFFICIAL] = lambda: OfficialSegmenter(setting.official, ours())
    return found | {SEGFORMER: UpsampledSegformer}


def check_equal(setting: Setting) -> float | None:
    """The largest difference between our logits and the official code's in float64. Raises UserError above EQUAL."""
    if setting.official is None:
        return None
    made = builders(INFERENCE, setting)
    images = torch.randn(1, 3, 192, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = (made[name]().double().eval()(images) for name in (OURS, OFFICIAL))
    difference = (ours - theirs).abs().max().item()
    if not difference <= EQUAL:
        raise UserError(
            f"logits differ from the official code's by {difference:.3g} in float64; their times do not compare"
        )
    return difference


def prepared(model: nn.Module, setting: Setting) -> nn.Module:
    model = model.to(setting.device)
    return torch.compile(model) if setting.compiled else model


def training_step(model: nn.Module, setting: Setting) -> Callable[[], int]:
    """Forward, loss over every pixel, backward; returns how many images that were.

    One with `forward_all` is trained as task=segment trains it, from scores of its head's size.
    """
    images, labels = setting.batch_of_noise()
    small = getattr(model, "forward_all", None)
    small = torch.compile(small) if small and setting.compiled else small

    def step() -> int:
        with setting.autocast():
            logits = small(images)[0] if small else model(images)
        if small:
            loss = resized_cross_entropy(logits, labels, IGNORED)
        else:
            loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return len(images)

    return step


def inference_step(model: nn.Module, setting: Setting) -> Callable[[], int]:
    images, _ = setting.batch_of_noise()
    model.eval()

    @torch.inference_mode()
    def step() -> int:
        with setting.autocast():
            model(images)
        return len(images)

    return step


STEPS = {TRAINING: training_step, INFERENCE: inference_step}


def memory_rows(setting: Setting, kind: str) -> list[Row]:
    """For every model its peak in a process of its own, above what that held when the model was there, in MiB."""
    rows = []
    for name in builders(kind, setting):
        found = in_fresh_process("edgetrain.bench.segmenters.peak", kind=kind, name=name, **asdict(setting))
        rows.append({"contender": name, "peak above the model, MiB": found / 2**20 if found else NOT_RUN})
    return rows


def peak(kind: str, name: str, **settings: Any) -> int | None:
    """Bytes of two steps above the model's own; None where the system does not tell. For a fresh process."""
    setting = Setting(**settings)
    model = prepared(builders(kind, setting)[name](), setting)
    step = STEPS[kind](model, setting)
    gpu = setting.device == "cuda"
    before = torch.cuda.memory_allocated() if gpu else resident()
    for _ in range(2):
        step()
    largest = torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")
    return None if before is None or largest is None else largest - before
