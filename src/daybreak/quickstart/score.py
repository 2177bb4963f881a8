"""Bits per byte of a text under a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from daybreak.data.windows import Ids, Score, scoring_windows
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch, token_losses

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
    prompt: Callable[[Sequence[int]], Sequence[int]] = list,
) -> float:
    """What the model needs to write `documents`, which are `size` bytes of text, in bits per byte.

    Every token but the first of each document (its start token, which stands for no text) is scored once,
    with at most `context` tokens read: all of a document's first window, then `stride` new tokens at a time
    behind the tokens before them. `progress` is called with the number of windows done and of all.
    `prompt` gives what is read before the tokens that go on from a beginning; what it adds is not counted.
    """
    windows = scoring_windows([len(document) for document in documents], context, stride)
    windows.sort(key=lambda window: window.end - window.begin)
    nats, done = 0.0, 0
    while done < len(windows):
        some = windows[done : done + max(1, ROOM // context)]
        tokens, targets, real = _batch(documents, some, prompt)
        # Causality hides what is filled up on the right; only pieces in blanks would count it.
        reading = decoder.reading(tokens, None if decoder.architecture.blanks is None else real)
        nats += float(token_losses(decoder, Batch(reading, targets)).double().sum())
        done += len(some)
        if progress is not None:
            progress(done, len(windows))
    return nats / math.log(2) / size


def _batch(
    documents: Sequence[Ids], windows: Sequence[Score], prompt: Callable[[Sequence[int]], Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, and which inputs are real, [windows, longest]; what is filled up on the right is not
    scored."""
    rows = []
    for window in windows:
        ids = documents[window.document][window.begin : window.end].tolist()
        first = window.first - window.begin
        before = [*prompt(ids[:first])]
        rows.append(([*before, *ids[first:-1]], [UNSCORED] * (len(before) - 1) + ids[first:]))
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    targets = torch.tensor([ids + [UNSCORED] * (longest - len(ids)) for _, ids in rows])
    real = torch.tensor([[place < len(ids) for place in range(longest)] for ids, _ in rows])
    return tokens, targets, real
