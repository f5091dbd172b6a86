"""Windows of a set that is never whole in memory nor on the disk, read, tokenised and packed in worker processes.

    files -> tables of 64 documents -> tokens -> blocks of `shuffle` windows -> windows, shuffled in their block

A lane is one worker of one training process: `workers` lanes a process. In each pass over the set every document goes
to exactly one lane: files are dealt out whole, in an order drawn from (seed, pass), and those that do not divide by the
number of lanes are dealt out document by document. Each lane packs its documents as packing.py does, pass after pass
without an end, and a worker's batch is of its own lane; the process takes its lanes' batches in turn. So the order
depends on the seed and on the numbers of processes and workers, never on which worker is faster.

A place in a lane is six integers (Place). Each batch comes with the place behind it, so that the loader's state is what
was handed out and not what the workers have read ahead. To go on from a place, a lane reads its file from the start,
without tokenising, up to the block it was in, and makes that block again.
"""

import os
import signal
import warnings
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.distributed import all_gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from edgetrain.data.order import world_and_rank
from edgetrain.data.source import Stream
from edgetrain.errors import UserError

ROWS = 64  # documents that are read and tokenised at a time
AHEAD = 64  # batches, at most, that a worker makes ahead
GRACE = 10  # seconds that a worker goes on after SIGTERM, which schedulers send to every process

warnings.filterwarnings("ignore", "Your `IterableDataset` has `__len__` defined")  # it is right for any workers


class Documents(Protocol):
    """How a table's rows become tokens."""

    def of(self, table: pa.Table) -> list[Any]:
        """The documents that hold anything and are not held out."""

    def tokens(self, documents: list[Any]) -> list[np.ndarray]:
        """Of each document, with what stands between two of them."""


class Place(NamedTuple):
    """A window in a lane. file: of the lane's files in this pass; table: in the file; token: in the table's tokens.

    These four say where the block begins; `block` counts blocks from the start of the run, `window` those of this
    block that were handed out.
    """

    passed: int = 0
    file: int = 0
    table: int = 0
    token: int = 0
    block: int = 0
    window: int = 0


class StreamWindows(IterableDataset):
    """Batches of one process's lanes: (worker, the place behind the batch, tokens [batch_size, context + 1]), no end.

    places: where each worker goes on; turn: the worker whose batch is next. An error that a user can cause is handed
    out in a batch's place, since a worker process would wrap it in a traceback.
    """

    def __init__(
        self, stream: Stream, documents: Documents, context: int, batch_size: int, shuffle: int, seed: int, workers: int
    ) -> None:
        self.stream, self.documents = stream, documents
        self.context, self.batch_size, self.shuffle, self.seed = context, batch_size, shuffle, seed
        self.workers = max(1, workers)
        self.world, self.rank = world_and_rank()
        self.places, self.turn = [Place()] * self.workers, 0

    @property
    def lanes(self) -> int:
        return self.world * self.workers

    def __iter__(self) -> Iterator[tuple[int, Place, np.ndarray] | UserError]:
        info = get_worker_info()
        # The loader asks its first worker first, so that one serves the lane whose turn it is.
        worker = (self.turn + (info.id if info else 0)) % self.workers
        lanes = [worker] if info else range(self.workers)
        windows = {each: self.windows(self.rank * self.workers + each, self.places[each]) for each in lanes}
        while True:
            try:
                samples = list(islice(windows[worker], self.batch_size))
            except UserError as error:
                yield error
                return
            yield worker, samples[-1][0], np.stack([window for _, window in samples])
            worker = worker if info else (worker + 1) % self.workers

    def windows(self, lane: int, place: Place) -> Iterator[tuple[Place, np.ndarray]]:
        """The windows of a lane, each with the place behind it."""
        tables = self.tables(lane, place)
        parts: deque[tuple[Place, np.ndarray]] = deque()  # tables' tokens from the one in which the block begins
        size, skip, first, block = 0, place.token, place.window, place.block
        span = self.shuffle * self.context
        while True:
            while size < skip + span + 1:
                parts.append(next(tables))
                size += len(parts[-1][1])
            start = parts[0][0]._replace(token=skip, block=block)
            pieces = [part for _, part in parts]
            pieces[0] = pieces[0][skip:]
            tokens = np.concatenate(pieces)[: span + 1]
            order = np.arange(self.shuffle)
            if self.shuffle > 1:
                order = np.random.default_rng([self.seed, block]).permutation(self.shuffle)
            for index in range(first, self.shuffle):
                begin = order[index] * self.context
                yield start._replace(window=index + 1), tokens[begin : begin + self.context + 1]
            skip, first, block = skip + span, 0, block + 1  # the last token is also the next block's first
            while parts and skip >= len(parts[0][1]):
                gone = len(parts.popleft()[1])
                skip, size = skip - gone, size - gone

    def tables(self, lane: int, place: Place) -> Iterator[tuple[Place, np.ndarray]]:
        """The tokens of a lane's share of each table, from the one at `place` on.

        Raises UserError when a whole pass has no document for the lane.
        """
        passed, file, table = place[:3]
        empty = file == table == 0
        while True:
            files = self.files(lane, passed)
            while file < len(files):
                for rows in self.stream.tables(files[file], ROWS, table):
                    documents = self.documents.of(self.share(rows, lane, file, files[file] + table * ROWS))
                    if documents:
                        empty = False
                        yield Place(passed, file, table), np.concatenate(self.documents.tokens(documents))
                    table += 1
                file, table = file + 1, 0
            if empty:
                raise UserError(
                    f"the train split of {self.stream.path} has no document for reader {lane + 1} of {self.lanes}"
                    " (data.workers in each process); use fewer, or give more text"
                )
            passed, file, empty = passed + 1, 0, True

    def files(self, lane: int, passed: int) -> list[int]:
        """What a lane reads in a pass: its whole files, then those that it shares with all lanes."""
        order = np.arange(self.stream.files)
        if self.shuffle > 1:
            order = np.random.default_rng([self.seed, passed]).permutation(self.stream.files)
        whole = len(order) - len(order) % self.lanes
        return [*order[:whole][lane :: self.lanes].tolist(), *order[whole:].tolist()]

    def share(self, rows: pa.Table, lane: int, file: int, number: int) -> pa.Table:
        """A lane's rows of a table whose first one has this number; `file` is its place among the lane's files."""
        if file < self.stream.files // self.lanes:
            return rows
        return rows.take(pa.array(range((lane - number) % self.lanes, len(rows), self.lanes), pa.int64()))


class StreamLoader(DataLoader):
    """Batches int64 [batch_size, context + 1] without an end, and the state to go on behind the last handed out.

    batches: the length that the loader gives. Lightning reads a loader without one a batch ahead, and then saves a
    state that is a batch ahead too.
    """

    dataset: StreamWindows

    def __init__(self, windows: StreamWindows, workers: int, batches: int) -> None:
        ahead = min(AHEAD, max(2, windows.shuffle // windows.batch_size))  # a block, while the next one is made
        super().__init__(
            windows,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            generator=torch.Generator().manual_seed(windows.seed),  # as in ResumableLoader
            worker_init_fn=_settle,
        )
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        """From behind the last batch handed out.

        Raises UserError when the set cannot be read or tokenised, and when a worker dies.
        """
        batches = super().__iter__()
        try:
            while True:
                item = next(batches)
                if isinstance(item, UserError):
                    raise item
                worker, place, tokens = item
                self.dataset.places[worker] = place
                self.dataset.turn = (worker + 1) % self.dataset.workers
                yield torch.from_numpy(tokens.astype(np.int64))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that reads {self.dataset.stream.path} died ({str(error).splitlines()[0]}); if memory ran"
                " out, take a smaller data.shuffle or fewer data.workers; go on with resume="
            ) from error.with_traceback(None)
        finally:
            del batches  # what an exception's traceback keeps alive takes ten seconds to stop its workers

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the places of all lanes of all processes, which every process has to ask for together."""
        windows = self.dataset
        places = [[list(place) for place in windows.places]]
        if windows.world > 1:
            mine, places = places[0], [[]] * windows.world
            all_gather_object(places, mine)
        return {"set": windows.stream.fingerprint, "turn": windows.turn, "places": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch handed out. Raises UserError with other lanes or another set."""
        windows = self.dataset
        world, workers = len(state["places"]), len(state["places"][0])
        if (world, workers) != (windows.world, windows.workers):
            raise UserError(
                f"cannot resume: the stream was read by {world} processes with {workers} workers each and now by"
                f" {windows.world} with {windows.workers}; resume with the numbers of the saved run"
            )
        if state["set"] != windows.stream.fingerprint:
            raise UserError(
                f"cannot resume: the files of {windows.stream.path} are no longer those of the saved run; resume with"
                " the same names and sizes, or start a new run with init_from="
            )
        windows.places = [Place(*place) for place in state["places"][windows.rank]]
        windows.turn = state["turn"]


def _as_it_is(item: Any) -> Any:
    return item


def _settle(worker: int) -> None:
    """Of a worker process: one core, and signals are the training process's, which still needs a batch or two."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
