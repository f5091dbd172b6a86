"""A long piece of work that goes on for some steps whenever it is called, and rests in between.

So two training loops, each of which wants to run to its end, can be timed in turns.
"""

import threading
from collections.abc import Callable


class Finished(Exception):
    """Raised inside the work when nobody will call it again; let it pass."""


class Paused:
    """`work(step)` in a thread of its own, which calls `step()` after each of its steps.

    A call of this object lets it do `steps` of them, and returns steps * units. Building belongs to the first call.
    As a context, ends the work on leaving. What the work raises, the call raises.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None], steps: int, units: int) -> None:
        self.work, self.steps, self.units = work, steps, units
        self.left = 0
        self.error: BaseException | None = None
        self.closing = self.ended = False
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __call__(self) -> int:
        if not self.thread.ident:
            self.thread.start()
        self.left = self.steps
        self.turn.release()
        self.back.acquire()
        if self.error is not None:
            raise self.error
        if self.ended:
            raise RuntimeError(f"the work ended {self.left} steps before it was asked to")
        return self.steps * self.units

    def __enter__(self) -> "Paused":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        self.turn.release()
        if self.thread.ident:
            self.thread.join()

    def _run(self) -> None:
        self.turn.acquire()
        try:
            self.work(self._step)
        except Finished:
            pass
        except BaseException as error:
            self.error = error
        self.ended = True
        self.back.release()

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.closing:
            self.back.release()
            self.turn.acquire()
        if self.closing:
            raise Finished
