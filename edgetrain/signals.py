"""Ctrl-C and a scheduler's SIGTERM: an exception at once or, in training, a wish that waits for the end of the step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgetrain.errors import Interrupted
from edgetrain.processes import is_first


class Stop:
    """What this process was asked for. number: of the first signal, 0 before it; patient: the first is only noted."""

    number = 0
    patient = False

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        again, self.number = bool(self.number), number
        if again or not self.patient:
            raise Interrupted(number)
        if is_first():
            os.write(2, b"\nstopping at the end of this step; once more stops at once\n")  # print may be under way

    def listen(self, *numbers: int) -> None:
        """Handle these signals. Does nothing outside the main thread, where Python does not allow it."""
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, self.handle)

    def check(self) -> None:
        """Raises Interrupted when a signal was noted."""
        if self.number:
            raise Interrupted(self.number)


stop = Stop()  # signals come to a process, so there is one


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises Interrupted as Ctrl-C raises KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGTERM)
    stop.number, stop.patient = 0, False
    stop.listen(signal.SIGTERM)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) == stop.handle:
            signal.signal(signal.SIGTERM, before)
