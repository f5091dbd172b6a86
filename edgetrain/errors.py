"""The exceptions that reach a user as a sentence instead of a traceback."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Bad input from outside: the message says what is wrong, where, and what to do. Exit code 2."""


class Interrupted(BaseException):
    """Ctrl-C or a scheduler's SIGTERM; training saves its state first. Exit code 128 + the signal: 130 or 143.

    No Exception, as KeyboardInterrupt is none: whoever handles any error must not take it for one.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__("terminated" if number == signal.SIGTERM else "interrupted")
        self.code = 128 + number


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Names joined for an error message, cut at `limit`."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
