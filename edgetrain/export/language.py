"""A Llama as a program: tokens in, logits out, keys and values kept from one call to the next.

Runtimes keep state in two ways, so there are two forms, each of one program that reads any number of tokens: it is
prefill and decode at once, and holds one copy of the weights.

- `language_stateful` (ExecuTorch, pt2) has the cache in buffers. Two methods of one ExecuTorch program would each have
  buffers of their own, so decode would not see what prefill wrote; hence one.
- `language_onnx` takes past keys and values and gives the present ones; an empty past makes it prefill.

The exporters of those targets ask `is_language`, then call `export_llama(model, out)` of `language_executorch`,
`language_onnx` or `language_pt2`, and, for files that `are_language`, its `load_llama(folder, files)`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgetrain.errors import UserError
from edgetrain.export.artefact import Artefact
from edgetrain.models.huggingface import llama_settings
from edgetrain.models.llama import Llama

STEM = "llama"  # of the file names of every language artefact
TOLERANCE = 1e-4  # of a logit, fp32

Step = Callable[[Tensor, int], Tensor]


def is_language(model: nn.Module) -> bool:
    """Whether it is exported as a program with a cache: our Llama, and whatever of transformers has a language head."""
    return isinstance(model, Llama) or hasattr(model, "generate")


def are_language(files: tuple[str, ...]) -> bool:
    """Whether files of an exported folder are those of a language model."""
    return files[0].startswith(f"{STEM}_")


def check_llama(model: nn.Module, target: str) -> None:
    """Raises UserError for a language model that computes something else than our Llama does."""
    if not isinstance(model, Llama):
        settings_of(model, target)


def as_llama(model: nn.Module, target: str) -> Llama:
    """A copy to export, in float32 on the CPU, without gradients; a Llama of transformers becomes ours.

    Raises UserError as `check_llama` does.
    """
    if isinstance(model, Llama):
        llama = copy.deepcopy(model)
    else:
        llama = Llama(**settings_of(model, target))
        llama.load_state_dict(model.state_dict())
    return llama.cpu().float().eval().requires_grad_(False)


def settings_of(model: nn.Module, target: str) -> dict[str, Any]:
    """Arguments of our Llama that make a model of transformers."""
    try:
        return llama_settings(model.config.to_dict())
    except (AttributeError, KeyError, UserError) as error:
        name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            f"export.{target} writes language models that are Llamas, and {name} is not one; train model=llama, or "
            "leave this target out"
        ) from error


@dataclass(frozen=True)
class Session:
    """A loaded program with its cache, which a step at position 0 begins anew.

    step: (int64 tokens [1, n], position of the first) -> logits [1, n, vocab], n at most `chunk`; context: positions.
    """

    step: Step
    context: int
    chunk: int

    def predict(self, tokens: Tensor) -> Tensor:
        """Logits [batch, n, vocab] of int64 tokens [batch, n], row by row. Raises UserError beyond the context."""
        if not 1 <= tokens.shape[1] <= self.context:
            raise UserError(
                f"{tokens.shape[1]} tokens do not fit the artefact, which reads 1 to {self.context} (its context)"
            )
        return torch.cat([self.read(row[None]) for row in tokens])

    def read(self, tokens: Tensor) -> Tensor:
        """Logits [1, n, vocab] of tokens [1, n] that begin a text, in chunks."""
        parts = tokens.split(self.chunk, dim=1)
        return torch.cat([self.step(part, index * self.chunk) for index, part in enumerate(parts)], dim=1)

    def generate(self, prompt: Tensor, new_tokens: int) -> Tensor:
        """Greedy: int64 [n + new_tokens], the prompt [n] first. Raises UserError when they do not fit the context."""
        length = len(prompt)
        if length < 1 or new_tokens < 1 or length + new_tokens > self.context:
            raise UserError(
                f"a prompt of {length} tokens and {new_tokens} new ones do not fit the artefact's context of "
                f"{self.context}; give at least one of each, and fewer together"
            )
        text = prompt.tolist()
        logits = self.read(prompt[None])
        while True:
            text.append(int(logits[0, -1].argmax()))
            if len(text) == length + new_tokens:
                return torch.tensor(text)
            logits = self.step(torch.tensor([text[-1:]]), len(text) - 1)

    def artefact(self, name: str, files: tuple[str, ...], llama: Llama, facts: dict[str, Any]) -> Artefact:
        """What an exporter hands back; llama: what it is to equal."""
        about = {"context": self.context, "cache": "prefill and decode share one program and one copy of the weights"}
        return Artefact(name, files, self.predict, llama, TOLERANCE, facts=about | facts, generate=self.generate)
