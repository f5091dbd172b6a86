import json
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from edgetrain.data.source import TEXT, Stream, read_streams
from edgetrain.data.stream import Place, StreamLoader, StreamWindows
from edgetrain.errors import UserError

FILES = (150, 3, 64, 0, 70)  # documents


class Numbered:
    """A document is a number as text; its tokens are that number, one to five times, and a zero."""

    def of(self, table: pa.Table) -> list[str]:
        return table.column(0).to_pylist()

    def tokens(self, documents: list[str]) -> list[np.ndarray]:
        return [np.array([int(each)] * (int(each) % 5 + 1) + [0], dtype=np.uint16) for each in documents]


class Slow(Numbered):
    """Every second worker process takes its time."""

    def of(self, table: pa.Table) -> list[str]:
        time.sleep(0.02 * (os.getpid() % 2))
        return super().of(table)


def stream_of(folder: Path, files: tuple[int, ...] = FILES) -> Stream:
    """Documents 1, 2, 3, ... in files of these sizes."""
    folder.mkdir(exist_ok=True)
    number = 0
    for file, documents in enumerate(files):
        numbers = range(number + 1, number + 1 + documents)
        (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": str(each)}) + "\n" for each in numbers))
        number += documents
    return read_streams(str(folder), "text", TEXT)["train"]


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return stream_of(tmp_path / "set")


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch):
    def be(rank: int, world: int) -> None:
        monkeypatch.setattr("edgetrain.data.stream.world_and_rank", lambda: (world, rank))

    return be


def windows(stream: Stream, workers: int = 1, **options) -> StreamWindows:
    arguments = {"documents": Numbered(), "context": 8, "batch_size": 4, "shuffle": 16, "seed": 3} | options
    return StreamWindows(stream, workers=workers, **arguments)


def loader(stream: Stream, workers: int, **options) -> StreamLoader:
    return StreamLoader(windows(stream, workers, **options), workers, batches=10**6)


def first(source: StreamLoader, count: int) -> list[list]:
    return [batch.tolist() for batch in islice(source, count)]


@pytest.mark.parametrize("shuffle", [1, 16])
@pytest.mark.parametrize("files", [(40,), (30, 10, 20, 5), FILES], ids=["one", "four", "five"])
def test_every_document_goes_to_exactly_one_lane_in_every_pass(tmp_path: Path, rank, files, shuffle: int):
    stream = stream_of(tmp_path / "set", files)
    passes: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for process in range(2):
        rank(process, 2)
        part = windows(stream, workers=2, shuffle=shuffle)
        for worker in range(2):
            for place, tokens in part.tables(process * 2 + worker, Place()):
                if place.passed not in passes:
                    break
                ends = np.flatnonzero(tokens == 0)
                passes[place.passed] += tokens[ends - 1].tolist()
    assert all(sorted(seen) == list(range(1, sum(files) + 1)) for seen in passes.values())


def test_files_that_divide_by_the_lanes_are_read_whole(stream: Stream, rank):
    rank(0, 2)
    part = windows(stream, workers=2)
    dealt = [part.files(lane, 0) for lane in range(4)]
    assert [len(files) for files in dealt] == [2] * 4
    assert len({files[0] for files in dealt}) == 4
    assert len({files[1] for files in dealt} | {files[0] for files in dealt}) == 5
    assert windows(stream, workers=2, shuffle=1).files(1, 0) == [1, 4]


def test_a_file_that_lanes_share_is_dealt_out_evenly(tmp_path: Path, rank):
    rank(0, 6)
    part = windows(stream_of(tmp_path / "set", (640,)), workers=8, shuffle=1)  # 48 lanes, tables of 64
    ends = [
        sum((tokens == 0).sum() for place, tokens in islice(part.tables(lane, Place()), 10) if not place.passed)
        for lane in range(48)
    ]
    assert sum(ends) == 640 and set(ends) == {13, 14}


def lane_tokens(stream: Stream, passes: int) -> list[int]:
    """The tokens of the only lane in the set's own order."""
    texts = [text for file in range(stream.files) for table in stream.tables(file, 7) for text in Numbered().of(table)]
    return np.concatenate(Numbered().tokens(texts * passes)).tolist()


@pytest.mark.parametrize("context", [3, 8, 600])
def test_unshuffled_windows_are_the_documents_end_to_end(stream: Stream, context: int):
    tokens = lane_tokens(stream, passes=3)
    made = list(
        islice(windows(stream, context=context, shuffle=1).windows(0, Place()), 2 * len(tokens) // 3 // context)
    )
    for index, (_, window) in enumerate(made):
        assert window.tolist() == tokens[index * context : (index + 1) * context + 1]


def test_a_block_is_shuffled_within_itself_and_differently_each_time(tmp_path: Path):
    stream = stream_of(tmp_path / "set", (400,))  # one file: only windows can move
    plain, shuffled = (
        [window.tolist() for _, window in islice(windows(stream, shuffle=size).windows(0, Place()), 64)]
        for size in (1, 16)
    )
    blocks = [[plain.index(window) for window in shuffled[begin : begin + 16]] for begin in range(0, 64, 16)]
    assert [sorted(block) for block in blocks] == [[*range(begin, begin + 16)] for begin in range(0, 64, 16)]
    moved = {tuple(index - 16 * number for index in block) for number, block in enumerate(blocks)}
    assert len(moved) == 4 and tuple(range(16)) not in moved


def test_order_depends_on_the_seed(stream: Stream):
    one, again, other = (first(loader(stream, 0, seed=seed), 8) for seed in (3, 3, 4))
    assert one == again != other


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loaded_state_continues_where_the_saved_one_stopped(stream: Stream, workers: int, tmp_path: Path):
    whole = first(loader(stream, workers), 130)  # several passes
    for taken in (0, 1, 4, 7, 33, 96, 129):
        saved = loader(stream, workers)
        assert first(saved, taken) == whole[:taken]
        torch.save(saved.state_dict(), tmp_path / "state")
        resumed = loader(stream, workers)
        resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert first(resumed, 130 - taken) == whole[taken:]


def test_iterating_again_goes_on_behind_the_last_batch(stream: Stream):
    whole = first(loader(stream, 2), 9)
    cut = loader(stream, 2)
    assert first(cut, 3) + first(cut, 6) == whole


def test_lanes_take_turns_whichever_worker_is_faster(stream: Stream):
    lanes = windows(stream, workers=2)
    expected = [tokens.tolist() for _, _, tokens in islice(lanes, 40)]
    assert first(loader(stream, 2, documents=Slow()), 40) == expected
    alone = [[window.tolist() for _, window in islice(lanes.windows(lane, Place()), 80)] for lane in range(2)]
    assert expected == [alone[batch % 2][batch // 2 * 4 : batch // 2 * 4 + 4] for batch in range(40)]


def test_no_worker_and_one_worker_give_the_same(stream: Stream):
    assert first(loader(stream, 0), 20) == first(loader(stream, 1), 20)


def test_iterating_leaves_the_global_generators_alone(stream: Stream):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first(loader(stream, 1), 5)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


class Generated:
    """A set without an end, made up as it is read."""

    files, path = 1, "generated"

    def tables(self, file: int, rows: int, first: int = 0) -> Iterator[pa.Table]:
        while True:
            yield pa.table({"text": [str(number) for number in range(1, rows + 1)]})


def test_memory_does_not_grow_with_what_was_read():
    read = windows(Generated(), context=64, batch_size=8, shuffle=64).windows(0, Place())
    for _ in islice(read, 500):
        pass
    tracemalloc.start()
    peaks = []
    for _ in range(3):
        tracemalloc.reset_peak()
        for _ in islice(read, 4000):  # 256,000 tokens
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert max(peaks) < 200_000  # bytes; a block is 8,194, a table's tokens 512
    assert peaks[2] < 1.2 * peaks[0]


def test_fewer_documents_than_lanes_is_an_error(tmp_path: Path, rank):
    rank(1, 2)
    source = loader(stream_of(tmp_path / "set", (3,)), 2)
    with pytest.raises(UserError, match="has no document for reader . of 4 .*; use fewer, or give more text"):
        first(source, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_damaged_further_on_is_a_sentence(tmp_path: Path, workers: int):
    stream = stream_of(tmp_path / "set", (100, 100))
    (tmp_path / "set" / "1.jsonl").write_text('{"text": "5"}\nno json\n')
    with pytest.raises(UserError, match=r"data.path=.*set cannot be read \(.*\); give text, jsonl") as caught:
        first(loader(stream, workers, shuffle=1), 100)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf_8_further_on_names_the_file(tmp_path: Path):
    stream = stream_of(tmp_path / "set", (100, 100))
    (tmp_path / "set" / "1.jsonl").write_bytes('{"text": "caf\xe9"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match="1.jsonl is not UTF-8 text; convert it"):
        first(loader(stream, 1, shuffle=1), 100)


def test_a_worker_that_is_killed_is_a_sentence(stream: Stream):
    before = set(multiprocessing.active_children())
    batches = iter(loader(stream, 1, shuffle=4))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a process that reads .* died .*data.shuffle or fewer data.workers"):
        for _ in range(1000):
            next(batches)


def test_workers_leave_signals_to_the_training_process(stream: Stream):
    before = set(multiprocessing.active_children())
    batches = iter(loader(stream, 1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    time.sleep(0.3)
    assert worker.is_alive()
    assert len(list(islice(batches, 100))) == 100


def test_resuming_with_other_numbers_or_another_set_is_an_error(stream: Stream, rank, tmp_path: Path):
    state = loader(stream, 2).state_dict()
    with pytest.raises(UserError, match="read by 1 processes with 2 workers each and now by 1 with 1; resume with"):
        loader(stream, 1).load_state_dict(state)
    with pytest.raises(UserError, match=r"the files of .* are no longer those of the saved run; resume with"):
        loader(stream_of(tmp_path / "set", (*FILES, 5)), 2).load_state_dict(state)
    rank(0, 2)
    with pytest.raises(UserError, match="1 processes with 2 workers each and now by 2 with 2"):
        loader(stream, 2).load_state_dict(state)


def test_touched_files_are_the_same_set(stream: Stream, tmp_path: Path):
    os.utime(tmp_path / "set" / "0.jsonl", (1, 1))
    again = read_streams(stream.path, "text", TEXT)["train"]
    assert again.fingerprint == stream.fingerprint and again.version != stream.version


def one_of_two(rank: int, store: str, path: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    stream = read_streams(path, "text", TEXT)["train"]
    whole, taken = first(loader(stream, 1), 20), 5 + 8 * rank  # apart, so that their places differ
    saved = loader(stream, 1)
    first(saved, taken)
    state = saved.state_dict()
    resumed = loader(stream, 1)
    resumed.load_state_dict(state)
    results.put((rank, state, first(resumed, 20 - taken) == whole[taken:], whole))


def test_the_state_of_one_process_holds_that_of_all(stream: Stream, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (str(tmp_path / "store"), stream.path, results)
    processes = [context.Process(target=one_of_two, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    (_, state, equal, mine), (_, other_state, other_equal, theirs) = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert state == other_state and len(state["places"]) == 2
    assert equal and other_equal and mine != theirs
