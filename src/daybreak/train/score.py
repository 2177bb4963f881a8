"""Bits per byte of a text under a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from daybreak.data.windows import Ids, Score, scoring_windows
from daybreak.model.decoder import Decoder
from daybreak.objectives.causal import UNSCORED, token_losses

ROOM = 8192
"""Tokens read at once."""


@torch.no_grad()
def bits_per_byte(
    decoder: Decoder,
    documents: Sequence[Ids],
    size: int,
    context: int,
    stride: int,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """What the model needs to write `documents`, which are `size` bytes of text, in bits per byte.

    Every token but the first of each document (its start token, which stands for no text) is scored once,
    with at most `context` tokens read: all of a document's first window, then `stride` new tokens at a time
    behind the tokens before them. `progress` is called with the number of windows done and of all.
    """
    windows = scoring_windows([len(document) for document in documents], context, stride)
    windows.sort(key=lambda window: window.end - window.begin)
    nats, done = 0.0, 0
    while done < len(windows):
        some = windows[done : done + max(1, ROOM // context)]
        tokens, targets = _batch(documents, some)
        nats += float(token_losses(decoder, tokens, targets).double().sum())
        done += len(some)
        if progress is not None:
            progress(done, len(windows))
    return nats / math.log(2) / size


def _batch(documents: Sequence[Ids], windows: Sequence[Score]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, [windows, longest]; what is filled up on the right is not scored, and causality
    hides it."""
    longest = max(window.end - 1 - window.begin for window in windows)
    tokens = torch.zeros(len(windows), longest, dtype=torch.int64)
    targets = torch.full_like(tokens, UNSCORED)
    for row, window in enumerate(windows):
        ids = torch.from_numpy(documents[window.document][window.begin : window.end].astype("int64"))
        tokens[row, : len(ids) - 1] = ids[:-1]
        first = window.first - window.begin - 1
        targets[row, first : len(ids) - 1] = ids[first + 1 :]
    return tokens, targets
