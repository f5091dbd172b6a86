"""Architecture search under a board's limits: space, cheap feasibility first, then a score.

After the resource-constrained search of Hello Edge (Zhang, Suda, Lai & Chandra 2017, arXiv 1711.07128; text
unverified), whose authors picked by hand from what fitted. A point of the space becomes a configuration, and the board
says without training whether its network fits. Of those that do some are trained, each an ordinary run in a folder of
its own below runs/, and scored on validation data. The first half of them lies evenly over the range of cost; Optuna's
multi-objective TPE (Ozaki et al. 2020, GECCO) proposes the others from the scores so far.

All chance comes from the seed. So a search that was stopped goes on by doing the same again: what was costed stands in
search.json, what was trained in the run's folder.
"""

import copy
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

from rich.console import Console

from edgetrain.build import build, build_trained
from edgetrain.config import Config, find_problems, make
from edgetrain.errors import UserError, listing
from edgetrain.folder import RunFolder
from edgetrain.jobs.faults import NotFinite
from edgetrain.jobs.fit import Fit, check_exports, check_measures
from edgetrain.jobs.result import Result
from edgetrain.jobs.search_board import Board, quantity
from edgetrain.jobs.search_candidate import VALIDATION, Candidate, on_test
from edgetrain.jobs.search_proposals import Proposals
from edgetrain.jobs.search_result import Aim, add_comparison, add_result, front, write_candidates
from edgetrain.jobs.search_sampler import spread_over, suggestions
from edgetrain.jobs.search_space import merge, read_space, size
from edgetrain.processes import under_torchrun

PATIENCE = 100  # of Optuna's suggestions that are looked at for one that is new and fits
NAME = re.compile(r"(?!candidate)\w[\w.-]*").fullmatch
MIXED = 1_000_003  # a prime, so that the seeds of neighbouring searches and steps differ

console = Console(stderr=True, highlight=False)


class Search:
    """Networks of a space that fit a board, the best of which is the job's model.

    fit: trains a candidate. space: `search_space.py` says its grammar. references: by name, keys with their values as
    in the space; trained alike, and no part of the search. operations, milliseconds: limits besides the board's flash
    and RAM. proposals: points that are costed before any training; candidates: feasible ones that are trained. metric,
    direction: of the validation data; against: the need that the front trades it for.
    """

    def __init__(
        self,
        fit: Fit,
        space: dict[str, Any],
        references: dict[str, dict[str, Any]] | None = None,
        operations: float | None = None,
        milliseconds: float | None = None,
        proposals: int = 120,
        candidates: int = 20,
        metric: str = "accuracy",
        direction: Literal["maximize", "minimize"] = "maximize",
        against: Literal["operations", "milliseconds"] = "operations",
    ) -> None:
        for key, value in (("proposals", proposals), ("candidates", candidates)):
            if value < 1:
                raise UserError(f"job.{key}={value} must be at least 1")
        self.fit, self.space, self.references = fit, space, references or {}
        self.operations, self.milliseconds = operations, milliseconds
        self.proposals, self.candidates = proposals, candidates
        self.aim = Aim(metric, 1 if direction == "maximize" else -1, against)

    def run(self, config: Config, folder: RunFolder) -> Result:
        """Search, and judge the best and the references on the test split, once.

        Raises UserError for a space that the configuration does not take, and when nothing in it fits the board.
        """
        if under_torchrun():
            raise UserError("a search trains one network after the other in one process; start it without torchrun")
        base = base_of(config)
        axes = read_space(self.space, base)
        board = Board(device_of(config), self.operations, self.milliseconds)
        references = self.by_hand(base, board)
        started = time.monotonic()
        proposals = Proposals(base, axes, board, folder, resume=bool(config.resume))
        proposals.survey(self.proposals, config.seed, console)
        feasible = proposals.feasible
        console.print(f"costed   {len(proposals)} networks, of which {len(feasible)} fit {board.device.name}")
        if not feasible:
            raise UserError(proposals.refusal())
        check_first(config, feasible[0].config)
        trained = self.train(proposals, references, config.seed)
        by_hand = [one for one in references if not one.problem]
        write_candidates(proposals.all, folder)
        add_result(trained, by_hand, self.aim, board.limit(self.aim.against), folder)
        metrics = {
            "search/proposals": len(proposals),
            "search/feasible": len(proposals.feasible),
            "search/trained": len(trained),
            "search/seconds": time.monotonic() - started,
        }
        if proposals.rate:
            metrics["search/proposals_per_minute"] = proposals.rate
        result = self.judge(config, front(trained, self.aim)[-1], by_hand, folder)
        return Result(metrics | result.metrics, result.models)

    def by_hand(self, base: dict[str, Any], board: Board) -> list[Candidate]:
        """The references, which need not fit. Raises UserError for keys that the configuration does not take."""
        made, problems = [], []
        for name, changes in self.references.items():
            raw = copy.deepcopy(base)
            merge(raw, changes)
            wrong = find_problems(raw)
            if not NAME(name):
                wrong = ["a reference names a folder; give it a word that does not begin with 'candidate'"]
            problems += [f"job.references.{name}: {line}" for line in wrong]
            if wrong:
                continue
            config = make(raw)
            verdict = board.judge(config)
            problems += [f"job.references.{name}: {verdict.problem}"] if verdict.problem else []
            made.append(Candidate(name, config, verdict))
        if problems:
            raise UserError("\n".join(problems))
        return made

    def train(self, proposals: Proposals, references: Sequence[Candidate], seed: int) -> list[Candidate]:
        """The references and then the search; returns those of the search that have a score."""
        total = min(self.candidates, size(proposals.axes))
        costs = {one.point: self.aim.cost(one) for one in proposals.feasible}
        waiting = spread_over(costs, (total + 1) // 2)
        tried: list[Candidate] = []
        for number, one in enumerate(references, start=1):
            self.score(one, proposals.folder, f"{number} of {len(references) + total}")
        while len(tried) < total:
            chosen = proposals.at(waiting.pop(0)) if waiting else self.next(proposals, tried, seed)
            if chosen is None:
                break
            tried.append(chosen)
            proposals.save()
            self.score(chosen, proposals.folder, f"{len(references) + len(tried)} of {len(references) + total}")
        scored = [one for one in tried if not one.problem]
        if not scored:
            raise UserError(f"every network diverged; {tried[0].name}: {tried[0].problem}")
        return scored

    def next(self, proposals: Proposals, tried: Sequence[Candidate], seed: int) -> Candidate | None:
        """The first suggestion of Optuna that is new and fits, else a feasible one by lot; None when all are tried."""
        seen = {one.point for one in tried}
        scored = [(one.point, self.aim.cost(one), self.aim.score(one)) for one in tried if not one.problem]
        seed = seed * MIXED + len(tried)
        for place in islice(suggestions(proposals.axes, scored, seed), PATIENCE):
            if place not in seen and proposals.at(place).verdict.feasible:
                return proposals.at(place)
        left = [one for one in proposals.feasible if one.point not in seen]
        return random.Random(seed).choice(left) if left else None

    def score(self, one: Candidate, folder: RunFolder, number: str) -> None:
        """Train it, and say how it does. One that diverges is passed over."""
        try:
            one.train(folder)
        except UserError as error:
            if not isinstance(error.__cause__, NotFinite):
                raise
            one.problem = str(error.__cause__)
            console.print(f"diverged {one.name}: {one.problem} ({number})")
            return
        value = one.score(self.aim.metric)
        if value is None:
            known = [name.partition("/")[2] for name in one.metrics if name.startswith(VALIDATION)]
            raise UserError(f"job.metric={self.aim.metric}: the task scores {listing(known)}")
        cost = f"{quantity(self.aim.cost(one))} {self.aim.against}"
        seconds = f"{one.metrics['train_seconds']:.0f} s"
        console.print(f"scored   {one.name}  {self.aim.metric} {value:.4g}, {cost}, {seconds} ({number})")

    def judge(self, config: Config, best: Candidate, references: Sequence[Candidate], folder: RunFolder) -> Result:
        """The best network and the references on the test split; the best with what the recipe measures and exports."""
        trained = best.load(folder)
        trained.config = replace(best.config, measure=config.measure, export=config.export)
        judged = on_test(trained)
        others = {one.name: on_test(one.load(folder)) for one in references}
        scores = trained.task.score(judged)
        metrics = {"best/network": best.name, "best/run": str(best.folder(folder).path.relative_to(folder.path))}
        metrics |= {f"best/{key}": value for key, value in best.values.items()}
        metrics |= {f"best/{need.name}": need.needed for need in best.verdict.needs}
        metrics |= {"parameters": best.metrics["parameters"]}
        metrics |= {name: value for name, value in best.metrics.items() if name.startswith(VALIDATION)}
        metrics |= {f"test/{name}": value for name, value in scores.items()}
        metrics |= add_comparison(best, judged, others, folder)
        return Result(metrics | trained.data.facts(), {"model": trained})


def base_of(config: Config) -> dict[str, Any]:
    """What all networks of a search have in common: an ordinary fit on one device, without what follows it."""
    raw = config.to_dict()
    raw |= {"job": raw["job"]["fit"], "out": None, "resume": None, "variant": None, "baseline": None}
    raw |= {"measure": {}, "export": {}, "smoke": [], "variants": {}, "seeds": [], "study": {}, "claims": []}
    raw["trainer"] |= {"devices": 1, "num_nodes": 1, "enable_progress_bar": False}
    return raw


def device_of(config: Config) -> Any:
    if len(config.hardware) != 1:
        raise UserError(
            f"a search is for one board, and hardware names {listing(config.hardware) or 'none'}; choose one, "
            "as in hardware=[cortex_m7]"
        )
    return build(next(iter(config.hardware.values())))


def check_first(config: Config, first: Config) -> None:
    """What the recipe measures and exports must be able to take a network of the space, before any is trained."""
    if config.measure or config.export:
        trained = build_trained(first)
        check_measures(config, trained)
        check_exports(config, trained)
