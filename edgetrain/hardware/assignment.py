"""Which device runs which layer, and when: the heterogeneous assignment problem (HAP) that NASAIC poses.

Yang et al. 2020, arXiv 2002.04116: every layer runs whole on one device, a device runs one layer at a time, a layer
waits for those that it reads from. A shared memory gives every running layer the share of its bandwidth that it needs;
layers run together only while their shares fit.
"""

import heapq
import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Status = Literal["optimal", "feasible", "infeasible", "unknown"]
FULL = 1_000_000  # shares of the bandwidth are counted in millionths: whole numbers, for every solver the same
TOLERANCE = 1e-6  # relative, of a deadline: solvers round, and sums of the same times in another order differ


@dataclass(frozen=True)
class Problem:
    """seconds[layer][device]: infinite where the device cannot run the layer; before[layer]: the layers it waits for,
    which all stand before it; joules[layer][device]: None without a model of energy; shares[layer][device]: millionths
    of the bandwidth, None when it is not shared."""

    seconds: Sequence[Sequence[float]]
    before: Sequence[Sequence[int]]
    joules: Sequence[Sequence[float]] | None = None
    shares: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return len(self.seconds)

    @cached_property
    def devices(self) -> int:
        return max(map(len, self.seconds), default=0)

    @cached_property
    def after(self) -> list[list[int]]:
        """The layers that wait for each."""
        found: list[list[int]] = [[] for _ in self.seconds]
        for layer, others in enumerate(self.before):
            for other in others:
                found[other].append(layer)
        return found

    @cached_property
    def choices(self) -> list[list[int]]:
        """The devices that can run each layer."""
        return [[device for device, took in enumerate(row) if took < math.inf] for row in self.seconds]

    @cached_property
    def least_seconds(self) -> float:
        """No schedule is shorter: the longest chain on its fastest devices, all work spread evenly, all traffic."""
        shortest = [min(row) for row in self.seconds]
        ends: list[float] = []
        for layer, took in enumerate(shortest):
            ends.append(took + max((ends[other] for other in self.before[layer]), default=0.0))
        traffic = 0.0
        if self.shares is not None:
            traffic = sum(
                min(took * share for took, share in zip(*rows, strict=True) if took < math.inf)
                for rows in zip(self.seconds, self.shares, strict=True)
            )
        return max(max(ends, default=0.0), sum(shortest) / max(self.devices, 1), traffic / FULL)

    def energy(self, devices: Sequence[int]) -> float | None:
        if self.joules is None:
            return None
        return sum(self.joules[layer][device] for layer, device in enumerate(devices))

    def cheapest(self) -> list[int]:
        """The device that takes least energy for each layer, of equal ones the fastest; needs a model of energy."""
        return [
            min(choices, key=lambda device: (self.joules[layer][device], self.seconds[layer][device]))
            for layer, choices in enumerate(self.choices)
        ]


@dataclass(frozen=True)
class Assignment:
    """A schedule: the device of every layer and when it starts, in seconds. joules: None without a model of energy."""

    devices: tuple[int, ...]
    starts: tuple[float, ...]
    makespan: float
    joules: float | None

    def ends_by(self, deadline: float) -> bool:
        return self.makespan <= deadline * (1 + TOLERANCE)


def assignment(problem: Problem, devices: Sequence[int], starts: Sequence[float]) -> Assignment:
    ends = (start + problem.seconds[layer][devices[layer]] for layer, start in enumerate(starts))
    return Assignment(tuple(devices), tuple(starts), max(ends, default=0.0), problem.energy(devices))


def dispatched(problem: Problem, devices: Sequence[int], order: Sequence[int]) -> Assignment:
    """On given devices: whenever one is idle, the first layer in `order` that waits for nothing starts on it."""
    place = [0] * len(problem)
    for position, layer in enumerate(order):
        place[layer] = position
    missing = [len(others) for others in problem.before]
    ready = sorted(place[layer] for layer, count in enumerate(missing) if not count)
    starts = [0.0] * len(problem)
    busy, running, used, now = set(), [], 0, 0.0
    while ready or running:
        waiting = []
        for position in ready:
            layer = order[position]
            device = devices[layer]
            share = problem.shares[layer][device] if problem.shares else 0
            if device in busy or used + share > FULL:
                waiting.append(position)
                continue
            starts[layer], used = now, used + share
            busy.add(device)
            heapq.heappush(running, (now + problem.seconds[layer][device], layer, share))
        ready, now = waiting, running[0][0]
        while running and running[0][0] <= now:
            _, layer, share = heapq.heappop(running)
            used -= share
            busy.discard(devices[layer])
            for other in problem.after[layer]:
                missing[other] -= 1
                if not missing[other]:
                    insort(ready, place[other])
    return assignment(problem, devices, starts)


def replayed(problem: Problem, devices: Sequence[int], order: Sequence[int]) -> Assignment:
    """On given devices, layers started in this order, each as soon as its device, its inputs and the memory allow."""
    starts, ends = [0.0] * len(problem), [0.0] * len(problem)
    free = [0.0] * problem.devices
    running: list[tuple[float, int]] = []  # (end, share) of what takes bandwidth
    now = 0.0
    for layer in order:
        device = devices[layer]
        start = max([free[device], *(ends[other] for other in problem.before[layer])])
        if problem.shares is not None:
            share = problem.shares[layer][device]
            start = now = max(now, start)  # never before the layer before it, so that less and less runs after `start`
            running = sorted(entry for entry in running if entry[0] > now)
            while running and sum(other for _, other in running) + share > FULL:
                start = now = running.pop(0)[0]
            running.append((start + problem.seconds[layer][device], share))
        starts[layer] = start
        ends[layer] = free[device] = start + problem.seconds[layer][device]
    return assignment(problem, devices, starts)
