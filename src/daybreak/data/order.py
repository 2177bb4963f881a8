"""In which order sequences are read: pure functions of a seed and a number, with nothing stored.

Two questions are answered for any number at once, the first and the 10**12th alike: which source the n-th
sequence of a run comes from, and which stretch of its source the k-th sequence of a source is.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

VERSION = 1
"""Of the order: a change of anything here that changes it is a new version, for old runs must notice."""
WINDOW = 256
"""Sequences within which the sources are mixed exactly."""
ROUNDS = 16
"""Of the Feistel network; after 8, some orders of five elements come more often than others."""


def draw(*words: int | str) -> int:
    """64 bits that the words decide, as good as random: BLAKE2b, the same on every machine, for ever."""
    text = "\0".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"daybreak order").digest(), "big")


class Mixing:
    """Which source a sequence comes from.

    Of the first k * WINDOW sequences every source has its share, rounded, for every k, and the source of the
    largest share takes what rounding leaves over: no window draws lots, and nothing adds up over many. Inside
    a window the order is random.
    """

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        """`weights` are shares relative to each other; a source whose weight is 0 never comes."""
        self.names, self.seed = tuple(weights), seed
        # The decimal number that was written, so that 0.1 is a tenth and the sums are exact.
        exact = [Fraction(repr(float(weight))) for weight in weights.values()]
        self.shares = [weight / sum(exact) for weight in exact]
        """Of the sources, which add up to 1."""
        # The smallest first, so that each of them is off by little more than half a sequence.
        self._rising = sorted(range(len(exact)), key=exact.__getitem__)
        self._window = functools.lru_cache(4)(self._lay_out)

    def place(self, sequence: int) -> tuple[str, int]:
        """Sequence number `sequence` of the run -> (source, which of the source's sequences it is)."""
        window, row = divmod(sequence, WINDOW)
        source, number = self._window(window)[row]
        return self.names[source], number

    def before(self, window: int) -> list[int]:
        """How many sequences of each source come before this window."""
        counts = [0] * len(self.shares)
        left, share = window * WINDOW, Fraction(1)
        for source in self._rising:
            # Rounding a part of what the others have left over never makes fewer of more: no count goes back.
            counts[source] = math.floor(left * self.shares[source] / share + Fraction(1, 2))
            left -= counts[source]
            share -= self.shares[source]
        return counts

    def _lay_out(self, window: int) -> list[tuple[int, int]]:
        following, end = self.before(window), self.before(window + 1)
        sources = [source for source, count in enumerate(end) for _ in range(count - following[source])]
        found = []
        # Each source is read in its own order, whatever the order of the sources.
        for row in sorted(range(WINDOW), key=lambda row: draw("mixing", self.seed, window, row)):
            found.append((sources[row], following[sources[row]]))
            following[sources[row]] += 1
        return found


@dataclass(frozen=True)
class Walk:
    """Through one source, again and again: its tokens as a ring, cut into stretches of `length` tokens.

    Every epoch cuts the ring at another random place and reads every stretch once, in another random order.
    What is left over of the ring, less than a stretch, is another part in every epoch.
    """

    source: str
    tokens: int
    length: int
    seed: int

    @property
    def stretches(self) -> int:
        """Of an epoch."""
        return self.tokens // self.length

    def place(self, number: int) -> tuple[int, int]:
        """Sequence `number` of the source -> (epoch, first token)."""
        epoch, within = divmod(number, self.stretches)
        start = draw("start", self.seed, self.source, epoch) % self.tokens
        key = draw("walk", self.seed, self.source, epoch)
        return epoch, (start + permuted(within, self.stretches, key) * self.length) % self.tokens


def permuted(number: int, size: int, key: int) -> int:
    """Where a random permutation of 0 .. `size` - 1, chosen by `key`, sends `number`.

    A Feistel network on the cells of a rectangle with at least `size` cells (the generalised one of Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002): each round moves the rows by an amount that the
    column decides, or the columns by one that the row decides, which is undone by moving back, so no two
    cells meet. A cell outside `size` is sent on until it is inside (their cycle walking).
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    while True:
        row, column = number % rows, number // rows
        for turn in range(0, ROUNDS, 2):
            row = (row + _moved(key, turn, column)) % rows
            column = (column + _moved(key, turn + 1, row)) % columns
        number = column * rows + row
        if number < size:
            return number


def _moved(key: int, turn: int, number: int) -> int:
    text = b"%d %d %d" % (key, turn, number)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
