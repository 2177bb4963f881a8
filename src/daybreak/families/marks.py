"""Ids for the tokens of blanks in a vocabulary that none of the published models has."""

from __future__ import annotations

from daybreak.architecture import Blanks


def at_the_end(vocabulary: int, *, runs_on: bool = False) -> Blanks:
    """The last five ids."""
    last = vocabulary - 1
    return Blanks(start=last, end=last - 1, sentence=last - 2, rest=last - 3, mask=last - 4, runs_on=runs_on)
