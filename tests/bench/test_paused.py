"""Work that rests between calls."""

import threading

import pytest

from edgetrain.bench.paused import Paused


def counting(done: list[int], last: int = 10**9):
    def work(step) -> None:
        for number in range(last):
            done.append(number)
            step()

    return work


def test_each_call_does_its_steps_and_no_more() -> None:
    done: list[int] = []
    with Paused(counting(done), steps=3, units=5) as paused:
        assert paused() == 15
        assert done == [0, 1, 2]
        assert paused() == 15
        assert done == [0, 1, 2, 3, 4, 5]
    assert done == [0, 1, 2, 3, 4, 5]
    assert not paused.thread.is_alive()


def test_two_works_take_turns_in_threads_of_their_own() -> None:
    order: list[str] = []

    def work(name: str):
        def steps(step) -> None:
            while True:
                order.append(name)
                assert threading.current_thread() is not threading.main_thread()
                step()

        return steps

    with Paused(work("a"), 2, 1) as a, Paused(work("b"), 1, 1) as b:
        for _ in range(2):
            a()
            b()
    assert "".join(order) == "aabaab"


def test_what_the_work_raises_the_call_raises() -> None:
    def fails(step) -> None:
        step()
        raise ValueError("no data")

    with Paused(fails, steps=2, units=1) as paused, pytest.raises(ValueError, match="no data"):
        paused()


def test_work_that_ends_too_early_is_an_error_and_not_a_wait() -> None:
    with Paused(counting([], last=3), steps=2, units=1) as paused:
        paused()
        with pytest.raises(RuntimeError, match="ended 1 steps before"):
            paused()


def test_work_that_was_never_called_never_begins() -> None:
    done: list[int] = []
    with Paused(counting(done), steps=1, units=1):
        pass
    assert done == []
