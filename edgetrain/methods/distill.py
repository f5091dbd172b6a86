"""Knowledge distillation: the student also learns from a trained teacher's distribution over the next token.

    L = (1 - weight) * label loss + weight * L_KD,   L_KD = -(1/n) sum_i sum_c p_c^T(x_i) log p_c^S(x_i)

Liu et al. 2024, MobileLLM (arXiv 2402.14905), appendix on distillation: L_KD at temperature 1; it took 2.6 to 3.2 times
the training time there, and gained nothing. With a temperature other than 1, both distributions are softened by it and
L_KD is multiplied by its square (Hinton et al. 2015, arXiv 1503.02531, section 2). Notable choices:

- the teacher is none of the student's modules: frozen, in eval mode, in no checkpoint, and never moved by the Trainer;
- neither model's logits are held whole (`ops.soft_cross_entropy`);
- n counts the positions that have a target, as in the label loss.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgetrain.build import Trained, find_source, load_trained, read_config
from edgetrain.config import check_trust, find_problems, make
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.models.huggingface import load_llama
from edgetrain.ops.soft_cross_entropy import linear_soft_cross_entropy
from edgetrain.ops.targets import flat_rows, inputs_and_targets, supervised_rows


class Distill:
    """teacher: a run folder, recipe:NAME, or a Hugging Face folder of a Llama; weight: of L_KD, 0 to 1; temperature: T.

    Mixes into the loss that it is given: after layerskip in the list, into all of that method's loss; before it, into
    the last layer's part. Raises UserError for a teacher that cannot be read or that has other tokens.
    """

    wants_hidden_states = True

    def __init__(self, teacher: str, weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 <= weight <= 1:
            raise UserError(f"method.distill.weight={weight} is outside 0 to 1")
        if not temperature > 0:
            raise UserError(f"method.distill.temperature={temperature} must be above 0")
        self.source, self.weight, self.temperature = teacher, weight, temperature
        self.teacher: nn.Module | None = None

    def plan(self, model: nn.Module, data: Any) -> dict[str, Any]:
        """The teacher's folder: a resumed run keeps its teacher, whatever recipe:NAME means by then."""
        source = str(Path(find_source(self.source)).resolve())
        self.teacher, tokenizer = load_teacher(source)
        check_teacher(source, self.teacher, tokenizer, model, data)
        return {"teacher": source}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        self.source = plan["teacher"]
        return model

    def loss(self, loss: Tensor, context: Any) -> Tensor:
        if self.teacher is None:  # a resumed run; one that is only evaluated never needs it
            self.teacher, _ = load_teacher(self.source)
        student, rows = context.model, supervised_rows(context.batch)
        inputs, _ = inputs_and_targets(context.batch)
        teacher = self.teacher.to(inputs.device)
        with torch.no_grad():
            wise = flat_rows(teacher.model(inputs), rows)
        states = student.model.norm(flat_rows(context.hidden_states[-1], rows))
        soft = linear_soft_cross_entropy(states, student.lm_head.weight, wise, teacher.lm_head.weight, self.temperature)
        return (1 - self.weight) * loss + self.weight * soft


def load_teacher(source: str) -> tuple[nn.Module, Any]:
    """The trained model of a run or Hugging Face folder, frozen and in eval mode, and its tokenizer or None."""
    try:
        with torch.random.fork_rng(devices=[]):  # the run's own draws go on as if no teacher had been built
            if not (Path(source) / "config.yaml").is_file():
                file = Path(source) / "tokenizer.json"
                model, tokenizer = load_llama(source), Tokenizer.from_file(str(file)) if file.is_file() else None
            else:
                trained = load_run(RunFolder.open(source))
                model, tokenizer = trained.model, getattr(trained.data, "tokenizer", None)
    except UserError as error:
        raise UserError(f"method.distill.teacher: {error}") from error
    return model.eval().requires_grad_(False), tokenizer


def load_run(folder: RunFolder) -> Trained:
    """What a run of ours trained. Raises UserError for one that names other packages' classes."""
    if folder.is_study:
        raise UserError(f"{folder.path} is a study; name one of its runs, as in <study>/runs/<name>")
    saved = read_config(folder) | {"trust": []}
    check_trust(saved)
    problems = find_problems(saved)
    if problems:
        raise UserError(f"{folder.path}: {problems[0]}")
    return load_trained(folder, make(saved))


def check_teacher(source: str, teacher: nn.Module, tokenizer: Any, student: nn.Module, data: Any) -> None:
    """Raises UserError when the two models cannot be compared token by token."""
    where = f"method.distill.teacher={source}"
    for name, model in (("the teacher", teacher), ("the student", student)):
        if not hasattr(model, "lm_head") or not hasattr(getattr(model, "model", None), "norm"):
            raise UserError(f"{where}: {name} is a {type(model).__name__}, which is not arranged like Llama")
    theirs, ours = len(teacher.lm_head.weight), len(student.lm_head.weight)
    if theirs != ours:
        raise UserError(f"{where} has {theirs} tokens and the student {ours}; give both the same data.vocab_size")
    mine = getattr(data, "tokenizer", None)
    if tokenizer is not None and mine is not None and tokenizer.get_vocab() != mine.get_vocab():
        raise UserError(
            f"{where} has {theirs} tokens as the student has, but other ones; train the student with the teacher's: "
            "data.tokenizer=<folder with its tokenizer.json>"
        )
    room = getattr(teacher, "context", None)
    if room is not None and room < getattr(student, "context", 0):
        raise UserError(
            f"{where} reads at most {room} tokens and the student {student.context}; set data.context={room}"
        )
