"""The one exception that people are meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DaybreakError(ValueError):
    """Wrong input, named with its value and the remedy.

    The command line prints the message on one line and exits with status 2; whatever else is raised is our
    mistake.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known word closest to `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
