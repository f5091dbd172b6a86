"""HumanEval: does the program that a model writes pass the problem's own tests?

Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), sections 2.1 to 2.3: 164
problems, stop sequences, the unbiased estimate of pass@k. Programs run in `sandbox`, never in this process.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Any, get_args

from rich.console import Console
from rich.progress import track
from torch import Generator

from edgetrain.data.source import find_local, text_splits
from edgetrain.errors import UserError
from edgetrain.evaluation.generation import check_generates, continuations
from edgetrain.evaluation.model import check_exit
from edgetrain.evaluation.sandbox import Outcome, Status, run_program
from edgetrain.folder import Row, RunFolder
from edgetrain.spread import wilson_interval

HUB = "openai/openai_humaneval"
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # section 2.2
NO_ROOM = "prompt too long"


@dataclass(frozen=True)
class Problem:
    """One of the set's rows. `program` is what is run of a completion: prompt, completion, tests, and their call."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str

    def program(self, completion: str) -> str:
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


class HumanEval:
    """The measure `humaneval`. It runs programs that the model wrote; that the recipe lists it is the consent.

    path: the set, None looks for $EDGETRAIN_DATA/humaneval and then on the hub; limit: the first problems only;
    samples: completions a problem; temperature: 0 is greedy; pass_at: the k of pass@k, each at most `samples`;
    new_tokens: most tokens of a completion; exit_layer: leave after that layer; batch_size: completions decoded
    together; seconds, memory_mb: limits of a program; confined: refuse where programs cannot be kept from network and
    files; seed: of the samples.
    """

    def __init__(
        self,
        path: str | None = None,
        limit: int | None = None,
        samples: int = 1,
        temperature: float = 0.0,
        pass_at: tuple[int, ...] = (1,),
        new_tokens: int = 256,
        exit_layer: int | None = None,
        batch_size: int = 8,
        seconds: float = 3.0,
        memory_mb: int = 512,
        confined: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value in (("limit", limit), ("samples", samples), ("new_tokens", new_tokens)):
            if value is not None and value < 1:
                raise UserError(f"measure.humaneval.{name}={value} must be at least 1")
        if samples > 1 and temperature <= 0:
            raise UserError(f"measure.humaneval.samples={samples} would be alike at temperature=0; set it to 0.2, say")
        wrong = [k for k in pass_at if not 1 <= k <= samples]
        if wrong or not pass_at:
            raise UserError(f"measure.humaneval.pass_at={list(pass_at)} must name numbers from 1 to samples={samples}")
        if not seconds > 0 or memory_mb < 64:
            raise UserError(
                f"measure.humaneval: seconds={seconds} must be above 0 and memory_mb={memory_mb} at least 64, which an "
                "empty program needs"
            )
        self.path, self.limit, self.samples, self.temperature = path, limit, samples, temperature
        self.pass_at, self.new_tokens, self.exit_layer, self.batch_size = pass_at, new_tokens, exit_layer, batch_size
        self.seconds, self.memory_mb, self.confined, self.seed = seconds, memory_mb, confined, seed

    def check(self, model: Any) -> None:
        """Raises UserError when model, machine or data do not do; runs one empty program."""
        try:
            check_generates(model)
            check_exit(model, self.exit_layer, "exit_layer")
            if self.new_tokens >= model.context:
                raise UserError(
                    f"new_tokens={self.new_tokens} leaves no room in the model's context of {model.context}"
                )
            empty = self.run("")
            if not empty.passed:
                raise UserError(
                    f"an empty program does not pass in the sandbox ({empty.status}: {empty.detail}); give it more "
                    f"seconds than {self.seconds:g} or memory_mb than {self.memory_mb}"
                )
            self.problems()
        except UserError as error:
            raise UserError(f"measure.humaneval: {error}") from None

    def measure(self, trained: Any, folder: RunFolder) -> dict[str, float]:
        """Tables `humaneval` (outcomes) and `humaneval_samples`; humaneval/pass@k, and the interval of pass@1."""
        self.check(trained.model)
        problems = self.problems()
        completions = list(self.completions(trained, problems))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            programs = [None if text is None else problems[index].program(text) for index, text in completions]
            console = Console(stderr=True)
            outcomes = list(track(threads.map(self.run, programs), "programs", total=len(programs), console=console))
        passes = [0] * len(problems)
        for (index, _), outcome in zip(completions, outcomes, strict=True):
            passes[index] += outcome is not None and outcome.passed
        rates = {k: fmean(pass_at_k(self.samples, passed, k) for passed in passes) for k in (1, *self.pass_at)}
        low, high = wilson_interval(rates[1], len(problems))
        folder.add_table(
            "humaneval", outcome_rows(outcomes), "HumanEval: how the programs ended", self.caption(problems)
        )
        samples = [
            {
                "task": problems[index].task_id,
                "outcome": outcome.status if outcome else NO_ROOM,
                "detail": outcome.detail if outcome else "",
                "completion": text,
            }
            for (index, text), outcome in sorted(zip(completions, outcomes, strict=True), key=lambda pair: pair[0][0])
        ]
        folder.add_table("humaneval_samples", samples, "HumanEval: what the model wrote")
        metrics = {f"pass@{k}": rates[k] for k in self.pass_at}
        metrics |= {"pass@1_low": low, "pass@1_high": high, "problems": len(problems)}
        return {f"humaneval/{name}": value for name, value in metrics.items()}

    def problems(self) -> list[Problem]:
        """The test split's, in order. Raises UserError when the set is not there or lacks a column."""
        path = self.path or ("humaneval" if find_local("humaneval") else HUB)
        columns = []
        for column in Problem.__dataclass_fields__:
            try:
                splits = text_splits(path, column)
            except UserError as error:
                raise UserError(str(error).replace("data.path", "path").replace("data.column", "column")) from error
            split = splits.get("test") or next(iter(splits.values()))
            columns.append(split["text"][: self.limit])
        return [Problem(*row) for row in zip(*columns, strict=True)]

    def completions(self, trained: Any, problems: list[Problem]) -> Iterator[tuple[int, str | None]]:
        """Problem and text of every sample; None where prompt and new tokens do not fit the model's context."""
        model, tokenizer = trained.model.eval(), trained.data.tokenizer
        prompts = [tokenizer.encode(problem.prompt) for problem in problems]
        fit = [index for index, ids in enumerate(prompts) if len(ids) + self.new_tokens <= model.context]
        yield from ((index, None) for index in range(len(problems)) if index not in fit for _ in range(self.samples))
        asked = [index for index in fit for _ in range(self.samples)]
        written = continuations(
            model,
            tokenizer,
            [prompts[index] for index in asked],
            self.new_tokens,
            stop=STOP,
            eos_id=trained.data.eos_id,
            temperature=self.temperature,
            generator=Generator(model.lm_head.weight.device).manual_seed(self.seed),
            exit_layer=self.exit_layer,
            batch_size=self.batch_size,
        )
        for place, text in track(written, "completions", total=len(asked), console=Console(stderr=True)):
            yield asked[place], text

    def run(self, program: str | None) -> Outcome | None:
        if program is None:
            return None
        return run_program(program, self.seconds, self.memory_mb, confined=self.confined)

    def caption(self, problems: list[Problem]) -> str:
        how = "greedy" if self.temperature == 0 else f"{self.samples} samples at temperature {self.temperature}"
        limits = f"{self.seconds:g} s and {self.memory_mb} MB a program"
        place = "" if self.confined else "; not confined: programs had network and files"
        return f"{len(problems)} problems, {how}, at most {self.new_tokens} tokens; {limits}{place}."


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that one of k samples drawn without replacement passes: 1 - C(n - c, k) / C(n, k) (equation 1)."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def outcome_rows(outcomes: list[Outcome | None]) -> list[Row]:
    """How many programs ended in each way, and their share; ways that none took are listed, too."""
    counts = Counter(outcome.status if outcome else NO_ROOM for outcome in outcomes)
    return [
        {"outcome": name, "programs": counts[name], "share": counts[name] / len(outcomes)}
        for name in (*get_args(Status), NO_ROOM)
    ]
