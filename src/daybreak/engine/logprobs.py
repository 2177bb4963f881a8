"""Log-probabilities of tokens under the model's own distribution: before temperature, penalties and filters.

They are normalised over the whole table, as in training; ids that the tokenizer does not know are never among
the alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POSITIONS = 64
"""Positions whose logits exist at one time: a long prompt never needs length x vocabulary numbers."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely one token was."""

    token: int
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place and their log-probabilities, best first."""


def of_tokens(logits: Tensor, tokens: Sequence[int], alternatives: int, live: int) -> list[TokenLogprob]:
    """One entry per row of `logits` [rows, vocabulary] float32; alternatives have ids below `live`."""
    table = logits.log_softmax(-1)
    ids = torch.tensor(list(tokens), device=logits.device)
    own: list[float] = table.gather(-1, ids[:, None])[:, 0].tolist()
    if not alternatives:
        return [TokenLogprob(token, value) for token, value in zip(tokens, own, strict=True)]
    best = table[:, :live].topk(min(alternatives, live))
    rows = zip(tokens, own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token, value, tuple(zip(names, numbers, strict=True)))
        for token, value, names, numbers in rows
    ]


def of_rows(
    hidden: Tensor, tokens: Sequence[int], unembed: Callable[[Tensor], Tensor], alternatives: int, live: int
) -> list[TokenLogprob]:
    """Of the tokens that follow those whose `hidden` [tokens, width] these are."""
    found: list[TokenLogprob] = []
    for begin in range(0, len(tokens), POSITIONS):
        part = slice(begin, begin + POSITIONS)
        found += of_tokens(unembed(hidden[part]).float(), tokens[part], alternatives, live)
    return found
