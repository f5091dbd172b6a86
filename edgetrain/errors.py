"""The exceptions that reach a user as a sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input from outside: the message says what is wrong, where, and what to do. Exit code 2."""


class Interrupted(Exception):
    """Ctrl-C reached a job that can be resumed; it saved its state first. Exit code 130."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Names joined for an error message, cut at `limit`."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
