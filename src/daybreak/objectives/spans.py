"""Which stretches of a text are blanked out: short spans, placed at random (GLM, arXiv 2103.10360, sections
2.1 and 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daybreak.errors import DaybreakError

MEAN = 3
"""Of the Poisson distribution that span lengths are drawn from."""
LONGEST = 39
"""The distribution is tabulated on 1 .. 39 and renormalised."""


@dataclass(frozen=True)
class Stretch:
    """Tokens `begin` to `end` (exclusive) of a text.

    Where the token at `end` belongs to the stretch with its first part only, `tail` is that part in tokens of
    its own and `behind` the rest.
    """

    begin: int
    end: int
    tail: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @property
    def growth(self) -> int:
        """By how many tokens the text grows when the token at `end` is taken apart."""
        return len(self.tail) + len(self.behind) - 1 if self.tail else 0

    @property
    def length(self) -> int:
        return self.end - self.begin + len(self.tail)

    @property
    def reach(self) -> int:
        """The text must have at least so many tokens."""
        return self.end + 1 if self.tail else self.end


Shares = np.ndarray[tuple[int], np.dtype[np.float64]]


def length_shares() -> Shares:
    """[39] the probabilities of the span lengths 1, 2, ... 39."""
    shares: Shares = np.array([MEAN**length / math.factorial(length) for length in range(1, LONGEST + 1)])
    shares /= shares.sum()
    return shares


def draw_lengths(room: int, share: float, random: np.random.Generator, each: int = 0) -> list[int]:
    """Lengths of spans that together are at least `share` (at most 0.5) of a text.

    The text has `room` tokens, less `each` for every span. A length that would leave less than a token
    between any two spans, or no token at all, is not drawn. Raises `DaybreakError` for a text too short.
    """
    shares, found = length_shares(), list[int]()
    while not found or sum(found) < share * (room - each * len(found)):
        left = room - each * (len(found) + 1) - sum(found) - max(1, len(found))
        if left < 1:
            raise DaybreakError(f"a text of {room} tokens is too short for blanks in it; give a longer one")
        table = shares[:left]
        found.append(1 + int(random.choice(len(table), p=table / table.sum())))
    return found


def place(lengths: Sequence[int], length: int, random: np.random.Generator) -> list[Stretch]:
    """Spans of these lengths in a text of `length` tokens, in their order in the text, at least one token
    apart; every such arrangement is equally likely."""
    seen = length - sum(lengths)  # tokens that stay
    slots = np.sort(random.choice(seen + 1, len(lengths), replace=False))
    found, before = [], 0
    for slot, number in zip(slots, random.permutation(len(lengths)), strict=True):
        begin = int(slot) + before
        before += lengths[number]
        found.append(Stretch(begin, begin + lengths[number]))
    return found


def taken_apart(ids: Sequence[int], stretches: Sequence[Stretch]) -> tuple[list[int], list[Stretch]]:
    """The text with the tokens at the ends of `stretches` (in order) taken apart where they belong to two,
    and the same stretches in it, now of whole tokens."""
    whole, found, done = list[int](), list[Stretch](), 0
    for stretch in stretches:
        whole += ids[done : stretch.begin]
        begin = len(whole)
        whole += [*ids[stretch.begin : stretch.end], *stretch.tail]
        found.append(Stretch(begin, len(whole)))
        whole += stretch.behind
        done = stretch.reach
    return [*whole, *ids[done:]], found
