"""Blank infilling: parts of a text are blanked out, the rest is read in both directions, and the parts are
predicted from left to right, in random order (arXiv 2103.10360, section 2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from daybreak.architecture import Blanks
from daybreak.errors import DaybreakError
from daybreak.model.blanks import Layout
from daybreak.model.reading import Reading
from daybreak.objectives.batch import NO_MASKING, UNSCORED, Batch
from daybreak.objectives.sentences import Units
from daybreak.objectives.spans import Stretch, draw_lengths, place, taken_apart

KINDS = ("spans", "sentences", "rest")


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of blanks among the texts, and how much of a text they take. Raises
    `DaybreakError` for shares that do not add up to 1, and for parts outside their range.
    """

    spans: float = 1.0
    """Short spans, each a [MASK]."""
    sentences: float = 0.0
    """Whole sentences (or lines), each a [sMASK]."""
    rest: float = 0.0
    """All from some place to the end, one [gMASK]."""
    least: float = 0.15
    """Spans and sentences take at least this part of a text; at most 0.5."""
    most: float | None = None
    """The part to take is drawn evenly between `least` and this; None: it is `least`."""
    shortest_rest: float = 0.0
    """The rest is at least this part of a text."""
    packed: int = 1
    """Texts with spans are so many times shorter, and share a row."""

    def __post_init__(self) -> None:
        shares = [self.spans, self.sentences, self.rest]
        if min(shares) < 0 or not math.isclose(sum(shares), 1.0):
            raise DaybreakError(
                f"the shares of spans, sentences and rest are {shares}; they must add up to 1"
            )
        most = self.least if self.most is None else self.most
        if not 0 < self.least <= most <= 0.5:
            raise DaybreakError(
                f"blanks take {self.least} to {most} of a text; it must be above 0, up to 0.5"
            )
        if not 0 <= self.shortest_rest < 1 or self.packed < 1:
            raise DaybreakError(
                f"shortest_rest is {self.shortest_rest} and packed {self.packed}; the first must be "
                "from 0 to below 1, the second at least 1"
            )


SPANS = Mixture()
"""The paper's base and large models (section 3.1)."""
SPANS_AND_SENTENCES = Mixture(spans=0.5, sentences=0.5)
"""The paper's variant for sentences (section 3.2)."""
SPANS_AND_DOCUMENTS = Mixture(spans=0.5, rest=0.5, shortest_rest=0.5)
"""The paper's variant for documents (section 3.2)."""
ALL_THREE = Mixture(spans=0.5, sentences=0.3, rest=0.2, shortest_rest=0.25)
"""Of the model of ten billion parameters (the configuration in its repository)."""
PACKED_SPANS_AND_REST = Mixture(spans=0.3, rest=0.7, packed=4)
"""arXiv 2210.02414, section 2.2."""


@dataclass(frozen=True)
class Row:
    """One text with its blanks, or several packed ones; lists of the same length."""

    tokens: list[int]
    targets: list[int]
    positions: list[int]
    blocks: list[int]
    context: list[bool]
    documents: list[int]


@dataclass(frozen=True)
class BlankInfilling:
    """Texts with blanks, drawn anew for every sequence of the run. Raises `DaybreakError` where sentences are
    wanted and it is not said what they are."""

    blanks: Blanks
    """Those of the architecture."""
    mixture: Mixture = SPANS
    units: Units | None = None
    """What [sMASK] stands for."""
    frame: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Ids before and behind every context; one that ends in a [gMASK] has none behind it."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixture.sentences and (self.units is None or self.blanks.sentence is None):
            raise DaybreakError(
                "a mixture with sentences needs to be told what a sentence is, and a token for it; give "
                "units, or a mixture without sentences"
            )

    def batch(
        self, windows: Tensor, numbers: Sequence[int], lengths: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """From `windows` [batch, length + 1] rows of `length` tokens with all their marks, so of a few tokens
        less of text. Raises `DaybreakError` for `lengths`."""
        if lengths is not None:
            raise DaybreakError(NO_MASKING)
        length = windows.shape[1] - 1
        drawn = [np.random.default_rng([self.seed, number]) for number in numbers]
        rows = [self.row(ids, length, own) for ids, own in zip(windows.tolist(), drawn, strict=True)]

        def tensor(name: str) -> Tensor:
            return torch.tensor([getattr(row, name) for row in rows])

        layout = Layout(tensor("positions"), tensor("blocks"), tensor("context"))
        apart = self.mixture.packed > 1 or any(-1 in row.documents for row in rows)
        documents = tensor("documents") if apart else None
        return Batch(Reading.laid_out(tensor("tokens"), layout, documents), tensor("targets"))

    def row(self, ids: Sequence[int], length: int, random: np.random.Generator) -> Row:
        """The beginning of the text `ids`, as much of it as fits a row of `length` tokens."""
        mixture = self.mixture
        kind = KINDS[random.choice(3, p=(mixture.spans, mixture.sentences, mixture.rest))]
        if kind != "spans" or mixture.packed == 1:
            return self._text(kind, ids, length, random)
        part = length // mixture.packed
        texts = [self._text(kind, ids[n * part :], part, random, n) for n in range(mixture.packed)]
        return _padded(joined(texts), length)

    def _text(
        self, kind: str, ids: Sequence[int], length: int, random: np.random.Generator, document: int = 0
    ) -> Row:
        frame = (self.frame[0], ()) if kind == "rest" else self.frame
        room = min(length - sum(map(len, frame)), len(ids) + 2)
        if kind == "rest":
            chosen = _rest(room - 2, self.mixture.shortest_rest, random)
        else:
            chosen = self._sentences(ids, room, random) if kind == "sentences" else []
            kind = kind if chosen else "spans"
            chosen = chosen or self._spans(room, random)
        growth = sum(stretch.growth for stretch in chosen)
        text, pieces = taken_apart(ids[: room - 2 * len(chosen) - growth], chosen)
        mark = {"spans": self.blanks.mask, "sentences": self.blanks.sentence, "rest": self.blanks.rest}[kind]
        assert mark is not None
        order = [int(number) for number in random.permutation(len(pieces))]
        return _padded(blanked(text, pieces, mark, order, self.blanks, frame, document), length)

    def _share(self, random: np.random.Generator) -> float:
        most = self.mixture.most
        return self.mixture.least if most is None else float(random.uniform(self.mixture.least, most))

    def _spans(self, room: int, random: np.random.Generator) -> list[Stretch]:
        lengths = draw_lengths(room, self._share(random), random, each=2)
        return place(lengths, room - 2 * len(lengths), random)

    def _sentences(self, ids: Sequence[int], room: int, random: np.random.Generator) -> list[Stretch]:
        """Random ones until they are enough; none if the text is too short for any."""
        assert self.units is not None
        found, share = self.units.find(ids[:room]), self._share(random)
        chosen: list[Stretch] = []
        text = room
        for number in random.permutation(len(found)):
            if chosen and sum(stretch.length for stretch in chosen) >= share * text:
                break
            tried = [*chosen, found[number]]
            left = room - 2 * len(tried) - sum(stretch.growth for stretch in tried)
            seen = left - sum(stretch.length - stretch.growth for stretch in tried)
            if left >= max(stretch.reach for stretch in tried) and seen > 0:
                chosen, text = tried, left
        return sorted(chosen, key=lambda stretch: stretch.begin)


def _rest(length: int, shortest: float, random: np.random.Generator) -> list[Stretch]:
    """From a random place, but not before the third token, to the end of a text of `length` tokens."""
    least = max(1, math.ceil(shortest * length))
    if length < 3:
        raise DaybreakError(f"a text of {length} tokens is too short to be gone on with; give a longer one")
    begin = length - int(random.integers(min(least, length - 2), length - 1))
    return [Stretch(begin, length)]


def blanked(
    text: Sequence[int],
    pieces: Sequence[Stretch],
    mark: int,
    order: Sequence[int],
    blanks: Blanks,
    frame: tuple[Sequence[int], Sequence[int]] = ((), ()),
    document: int = 0,
) -> Row:
    """`text` with the token `mark` for each of `pieces` (in order, not overlapping), and then the pieces in
    this `order`: each begins with the start token and is to predict itself and the end token."""
    seen, places, done = list(frame[0]), list[int](), 0
    for piece in pieces:
        seen += text[done : piece.begin]
        places.append(len(seen))
        seen.append(mark)
        done = piece.end
    seen += [*text[done:], *frame[1]]
    count = len(seen)
    row = Row(seen, [UNSCORED] * count, list(range(count)), [0] * count, [True] * count, [document] * count)
    for number in order:
        own = list(text[pieces[number].begin : pieces[number].end])
        size, before = len(own) + 1, len(row.tokens)
        row.tokens.extend([blanks.start, *own])
        row.targets.extend([*own, blanks.end])
        runs = blanks.runs_on and mark == blanks.rest
        row.positions.extend(range(before, before + size) if runs else [places[number]] * size)
        row.blocks.extend(range(1, size + 1))
        row.context.extend([False] * size)
        row.documents.extend([document] * size)
    return row


def joined(rows: Sequence[Row]) -> Row:
    """Several texts in one row."""

    def every(name: str) -> list[int]:
        return [value for row in rows for value in getattr(row, name)]

    names = ("tokens", "targets", "positions", "blocks", "context", "documents")
    return Row(*(every(name) for name in names))  # type: ignore[arg-type]


def _padded(row: Row, length: int) -> Row:
    count = length - len(row.tokens)
    padding = Row([0] * count, [UNSCORED] * count, [0] * count, [0] * count, [False] * count, [-1] * count)
    return joined([row, padding]) if count else row
