"""An artefact judged on held-out data, by the lines that judge the model, and compared with what it is to equal."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.folder import RunFolder
from edgetrain.tasks.mask_predictions import MaskPredictions
from edgetrain.tasks.predictions import Predictions, logits_of

PROMPT, GENERATED = 8, 16  # tokens of the text that a language model's artefact has to go on with as the model does
ROUNDED = 1 + 1e-4  # two whole steps of a quantised output are a little more in float32


@dataclass(frozen=True)
class Judged:
    """parity: the largest absolute difference of an output from the reference's, over everything judged.

    same, answers: of how many answers artefact and reference say the same: items, of masks the pixels of the output.
    """

    predictions: Predictions | MaskPredictions
    reference: Predictions | MaskPredictions
    parity: float
    same: int
    answers: int

    @property
    def agreement(self) -> float:
        """Share of answers that are the same."""
        return self.same / self.answers


def held_out(task: Any, data: Any) -> Iterable[Any]:
    """The batches of the test split that exports are judged on: all, or the first `task.judged_batches`."""
    data.setup("test")
    return itertools.islice(data.test_dataloader(), task.judged_batches)


def check_called(exporter: Any, task: Any, data: Any) -> None:
    """Raises UserError when the first held-out batch would call an artefact with inputs of a size it will not take."""
    if hasattr(exporter, "check_sizes") and hasattr(task, "called_with"):
        called = task.called_with(next(iter(held_out(task, data))))
        exporter.check_sizes(task.example_inputs(), called)


def judge(artefact: Artefact, task: Any, batches: Iterable[Any]) -> Judged:
    """Both run on the same batches, each called as the task calls a model."""
    ours: list[Any] = []
    theirs: list[Any] = []
    differences = [torch.tensor(0.0)]
    same = answers = 0
    with torch.inference_mode():
        for batch in batches:
            expected: list[Tensor] = []
            found: list[Tensor] = []
            theirs.append(task.judged(recording(artefact.reference, expected), batch))
            ours.append(task.judged(recording(artefact.predict, found), batch))
            for one, other in zip(expected, found, strict=True):
                differences.append((one.float() - other.float()).abs().max())
            alike = task.same_answers(ours[-1], theirs[-1], found, expected)
            same, answers = same + int(alike.sum()), answers + alike.numel()
    parity = torch.stack(differences).max().item()  # NaN, where there is any
    return Judged(ours[0].joined(ours), theirs[0].joined(theirs), parity, same, answers)


def recording(predict: Callable[..., Any], outputs: list[Tensor]) -> Callable[..., Tensor]:
    """The same call, whose logits are also appended to `outputs`."""

    def call(*inputs: Tensor) -> Tensor:
        outputs.append(logits_of(predict(*inputs)))
        return outputs[-1]

    return call


def check_parity(target: str, artefact: Artefact, judged: Judged) -> None:
    """Raises UserError when an output differs by more than the exporter allows; NaN does."""
    if not judged.parity <= artefact.tolerance * ROUNDED:
        step = f" ({judged.parity / artefact.lsb:.2g} LSB)" if artefact.lsb else ""
        raise UserError(
            f"export {target}: outputs of {artefact.name} differ from the model's by {judged.parity:.3g}{step} on "
            f"held-out data, more than {artefact.tolerance:.3g}, and {1 - judged.agreement:.1%} of its answers; "
            "nothing was exported"
        )


def check_generation(target: str, artefact: Artefact, task: Any, data: Any) -> None:
    """Raises UserError when the artefact's greedy text is not the model's, which is decoded here without any cache."""
    if artefact.generate is None:
        return
    (tokens,) = task.inputs(next(iter(held_out(task, data))))
    prompt = tokens[0, :PROMPT]
    expected, new = prompt, min(GENERATED, len(tokens[0]) - len(prompt))  # within the context
    with torch.inference_mode():
        for _ in range(new):
            expected = torch.cat((expected, logits_of(artefact.reference(expected[None]))[0, -1:].argmax(-1)))
        found = artefact.generate(prompt, new)
    if not torch.equal(found, expected):
        same = int((found[: len(expected)] == expected[: len(found)]).int().cumprod(0).sum())
        raise UserError(
            f"export {target}: the text that {artefact.name} generates leaves the model's after {same} tokens of "
            f"{len(expected)}; nothing was exported"
        )


def write_predictions(folder: RunFolder, name: str, predictions: Predictions | MaskPredictions, data: Any) -> None:
    """tables/predictions_<name>.csv: a row an item, with what the data says of it, such as its speaker."""
    columns = predictions.columns() | groups_of(data, len(predictions))
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    folder.write_table(f"predictions_{name}", [{"item": index} | row for index, row in enumerate(rows)])


def groups_of(data: Any, items: int) -> dict[str, list[str]]:
    """What the data says of each test item, such as its speaker; empty where it says nothing."""
    groups = data.groups("test") if hasattr(data, "groups") else {}
    return {name: values[:items] for name, values in groups.items()}


def read_predictions(folder: RunFolder, name: str) -> Predictions | MaskPredictions:
    """What that file holds of every item."""
    rows = folder.read_table(f"predictions_{name}")
    return (MaskPredictions if "confusion" in rows[0] else Predictions).of_rows(rows)
