"""Documents of token ids to windows of equal length: random ones to learn from, overlapping ones to be
scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from daybreak.errors import DaybreakError

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
"""Token ids of one document, the document start token first."""


def training_windows(documents: Sequence[Ids], length: int, seed: int) -> Iterator[Tensor]:
    """Windows of `length` + 1 token ids without end, [length + 1] int64; the last id of one is the next's
    first.

    Every pass strings the documents together in a new random order, begins at a new random place, and gives
    the windows in random order, so no window is seen twice. Raises `DaybreakError` if all documents together
    are shorter than a window.
    """
    total = sum(map(len, documents))
    if total <= length:
        raise DaybreakError(f"the training text has {total} tokens, too few for a window of {length + 1}")
    random = np.random.default_rng(seed)
    while True:
        tokens = np.concatenate([documents[number] for number in random.permutation(len(documents))])
        begin = int(random.integers(min(length, total - length)))
        count = (total - begin - 1) // length
        for window in random.permutation(count):
            first = begin + int(window) * length
            yield torch.from_numpy(tokens[first : first + length + 1].astype(np.int64))


@dataclass(frozen=True)
class Score:
    """A stretch of a document that a model reads from token `begin` and is scored on tokens `first` to
    `end`."""

    document: int
    begin: int
    first: int
    end: int


def scoring_windows(lengths: Sequence[int], context: int, stride: int) -> list[Score]:
    """Windows that together score every token but the first of each document, exactly once.

    `lengths` counts the tokens of every document, its start token included. A window reads at most `context`
    tokens; the first of a document is scored whole, each later one on `stride` new tokens behind at least
    `context` - `stride` that were scored before. Raises `DaybreakError` for a stride outside 1 .. context.
    """
    if not 1 <= stride <= context:
        raise DaybreakError(
            f"the stride is {stride}; it must be between 1 and the context of {context} tokens"
        )
    found = []
    for document, length in enumerate(lengths):
        first = 1
        while first < length:
            end = min(length, first + (context if first == 1 else stride))
            # The token before the first scored one predicts it, so a window of `context` inputs ends at end -
            # 1.
            found.append(Score(document, max(0, end - 1 - context), first, end))
            first = end
    return found
