"""An artefact judged on held-out data, by the lines that judge the model, and compared with what it is to equal."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.folder import Row, RunFolder
from edgetrain.tasks.predictions import Predictions

PROMPT, GENERATED = 8, 16  # tokens of the text that a language model's artefact has to go on with as the model does


ROUNDED = 1 + 1e-4  # two whole steps of a quantised output are a little more in float32


@dataclass(frozen=True)
class Judged:
    """parity: the largest absolute difference of an output from the reference's, over everything judged."""

    predictions: Predictions
    reference: Predictions
    parity: float

    @property
    def agreement(self) -> float:
        """Share of items of which artefact and reference say the same."""
        return (self.predictions.predicted == self.reference.predicted).float().mean().item()


def held_out(task: Any, data: Any) -> Iterable[Any]:
    """The batches of the test split that exports are judged on: all, or the first `task.judged_batches`."""
    data.setup("test")
    return itertools.islice(data.test_dataloader(), task.judged_batches)


def judge(artefact: Artefact, task: Any, batches: Iterable[Any]) -> Judged:
    """Both run on the same batches, each once."""
    ours: list[Predictions] = []
    theirs: list[Predictions] = []
    differences = [torch.tensor(0.0)]
    with torch.inference_mode():
        for batch in batches:
            inputs = task.inputs(batch)
            expected, found = logits(artefact.reference(*inputs)), logits(artefact.predict(*inputs))
            theirs.append(task.judged(lambda *_, out=expected: out, batch))
            ours.append(task.judged(lambda *_, out=found: out, batch))
            differences.append((expected.float() - found.float()).abs().max())
    parity = torch.stack(differences).max().item()  # NaN, where there is any
    return Judged(Predictions.joined(ours), Predictions.joined(theirs), parity)


def check_parity(target: str, artefact: Artefact, judged: Judged) -> None:
    """Raises UserError when an output differs by more than the exporter allows; NaN does."""
    if not judged.parity <= artefact.tolerance * ROUNDED:
        step = f" ({judged.parity / artefact.lsb:.2g} LSB)" if artefact.lsb else ""
        raise UserError(
            f"export {target}: outputs of {artefact.name} differ from the model's by {judged.parity:.3g}{step} on "
            f"held-out data, more than {artefact.tolerance:.3g}, and {1 - judged.agreement:.1%} of its answers; "
            "nothing was exported"
        )


def check_generation(target: str, artefact: Artefact, batch: Any, task: Any) -> None:
    """Raises UserError when the artefact's greedy text is not the model's, which is decoded here without any cache."""
    if artefact.generate is None:
        return
    (tokens,) = task.inputs(batch)
    prompt = tokens[0, :PROMPT]
    expected, new = prompt, min(GENERATED, len(tokens[0]) - len(prompt))  # within the context
    with torch.inference_mode():
        for _ in range(new):
            expected = torch.cat((expected, logits(artefact.reference(expected[None]))[0, -1:].argmax(-1)))
        found = artefact.generate(prompt, new)
    if not torch.equal(found, expected):
        same = int((found[: len(expected)] == expected[: len(found)]).int().cumprod(0).sum())
        raise UserError(
            f"export {target}: the text that {artefact.name} generates leaves the model's after {same} tokens of "
            f"{len(expected)}; nothing was exported"
        )


def write_predictions(folder: RunFolder, name: str, predictions: Predictions, data: Any) -> None:
    """tables/predictions_<name>.csv: a row an item, with what the data says of it, such as its speaker."""
    columns = {
        "target": predictions.target.tolist(),
        "predicted": predictions.predicted.tolist(),
        "loss": predictions.loss.tolist(),
        **groups_of(data, len(predictions)),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    folder.write_table(f"predictions_{name}", [{"item": index} | row for index, row in enumerate(rows)])


def groups_of(data: Any, items: int) -> dict[str, list[str]]:
    """What the data says of each test item, such as its speaker; empty where it says nothing."""
    groups = data.groups("test") if hasattr(data, "groups") else {}
    return {name: values[:items] for name, values in groups.items()}


def read_predictions(folder: RunFolder, name: str) -> tuple[Predictions, list[Row]]:
    """The predictions of that file, and its rows."""
    rows = folder.read_table(f"predictions_{name}")
    target, predicted = (torch.tensor([int(row[key]) for row in rows]) for key in ("target", "predicted"))
    return Predictions(target, predicted, torch.tensor([float(row["loss"]) for row in rows])), rows


def logits(output: Any) -> Tensor:
    """Hugging Face models wrap theirs."""
    return getattr(output, "logits", output)
