"""Positions and sight are data: padding, packing and the cache's offset become one `Reading`, built once per
call.

The decoder never sees an attention mask. It gets a `Reading`, which knows each token's position and who may
see whom, and which can also say "plain causal", so that the fused path is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.errors import DaybreakError
from daybreak.model.cache import Cache


@dataclass(frozen=True, eq=False)
class Reading:
    """A batch of token ids with everything the layers need to know about their arrangement."""

    tokens: Tensor
    """[batch, length] int64"""
    positions: Tensor
    """[batch or 1, length] int64: place in its own text, from 0; anything where the token is padding."""
    key_positions: Tensor
    """[batch or 1, keys] int64: the same for every key, those of the cache first."""
    start: int = 0
    """Tokens already in the cache: query i stands at key start + i."""
    real: Tensor | None = None
    """[batch, length] bool: not padding; None: no padding among these tokens."""
    real_keys: Tensor | None = None
    """[batch, keys] bool: keys that may be seen at all; None: all (or all that causality leaves)."""
    documents: Tensor | None = None
    """[batch, length] int64: which of several packed texts each token belongs to; None: one text per row."""

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        mask: Tensor | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
        cache: Cache | None = None,
    ) -> Reading:
        """Arrange `tokens` [batch, length] int64.

        `mask` [batch, length] is True (or 1) for real tokens, wherever the padding stands; `lengths` gives
        per row the lengths of the texts packed into it one after another (what is left over is padding). With
        a `cache`, `tokens` continue it and `mask` speaks of the new tokens only. Raises `DaybreakError` for
        shapes that do not fit.
        """
        _check(tokens, mask, lengths, cache)
        if lengths is not None:
            return _packed(tokens, lengths)
        real = None if mask is None else mask.to(torch.bool)
        if real is not None and bool(real.all()):
            real = None
        if cache is not None and cache.length:
            return _continued(tokens, real, cache)
        if real is None:
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]  # [1, length]
            return cls(tokens, places, places)
        places = _count(real)
        # Padding on the right is hidden from real tokens by causality alone.
        hidden = real if bool((real[:, 1:] & ~real[:, :-1]).any()) else None
        return cls(tokens, places, places, real=real, real_keys=hidden)

    def is_plain_causal(self, window: int | None) -> bool:
        """Every token sees itself and all before it, and nothing else needs saying."""
        narrow = window is not None and window < self.length
        return self.start == 0 and self.real_keys is None and self.documents is None and not narrow

    def sees_all(self, window: int | None) -> bool:
        """One new token that sees every key: no mask is needed at all."""
        keys = self.start + self.length
        return self.length == 1 and self.real_keys is None and (window is None or window >= keys)

    def visible(self, window: int | None) -> Tensor:
        """[batch or 1, 1, length, keys] bool: may the query see the key?

        A padding query still sees itself, so that no row is empty: softmax over nothing is not a number, and
        one NaN among the values would poison the next layer through 0 * NaN.
        """
        device = self.tokens.device
        query = torch.arange(self.start, self.start + self.length, device=device)[:, None]
        key = torch.arange(self.start + self.length, device=device)[None]
        allowed = (key <= query)[None]  # [1, length, keys]
        if window is not None:
            # Counted in real tokens: padding between two of them does not use the window up.
            allowed = allowed & (self.key_positions[:, None] > self.positions[:, :, None] - window)
        if self.real_keys is not None:
            allowed = allowed & (self.real_keys[:, None] | (key == query))
        if self.documents is not None:
            allowed = allowed & (self.documents[:, :, None] == self.documents[:, None])
        return allowed[:, None]


def _count(real: Tensor) -> Tensor:
    return (real.long().cumsum(1) - 1).clamp(min=0)


def _packed(tokens: Tensor, lengths: Sequence[Sequence[int]]) -> Reading:
    documents = torch.full(tokens.shape, -1, dtype=torch.int64)
    places = torch.zeros(tokens.shape, dtype=torch.int64)
    for row, parts in enumerate(lengths):
        begin = 0
        for number, part in enumerate(parts):
            documents[row, begin : begin + part] = number
            places[row, begin : begin + part] = torch.arange(part)
            begin += part
    documents, places = documents.to(tokens.device), places.to(tokens.device)
    real = documents >= 0
    return Reading(tokens, places, places, real=None if bool(real.all()) else real, documents=documents)


def _continued(tokens: Tensor, real: Tensor | None, cache: Cache) -> Reading:
    before = cache.length
    if not cache.padded and real is None:
        places = torch.arange(before + tokens.shape[1], device=tokens.device)[None]
        return Reading(tokens, places[:, before:], places, start=before)
    past = cache.seen[:, :before]
    fresh = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    places = (past.sum(1, keepdim=True) + fresh.long().cumsum(1) - 1).clamp(min=0)
    return Reading(
        tokens,
        places,
        torch.cat([cache.places[:, :before], places], dim=1),
        start=before,
        real=real,
        real_keys=torch.cat([past, fresh], dim=1),
    )


def _check(
    tokens: Tensor, mask: Tensor | None, lengths: Sequence[Sequence[int]] | None, cache: Cache | None
) -> None:
    if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32) or not tokens.shape[1]:
        raise DaybreakError(
            f"tokens must be whole numbers of shape [batch, length] with at least one token, "
            f"not {tokens.dtype} of shape {list(tokens.shape)}"
        )
    if mask is not None:
        _check_mask(tokens, mask)
    if lengths is not None:
        _check_lengths(tokens, mask, lengths, cache)
    if cache is not None and cache.batch != tokens.shape[0]:
        raise DaybreakError(f"the cache holds {cache.batch} texts, the tokens are {tokens.shape[0]}")


def _check_mask(tokens: Tensor, mask: Tensor) -> None:
    if mask.shape != tokens.shape:
        raise DaybreakError(f"the mask has shape {list(mask.shape)}, the tokens {list(tokens.shape)}")
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise DaybreakError(
            "the mask holds other values than 0 and 1; give True (or 1) for real tokens and False (or 0) for "
            "padding, and packed texts by their lengths"
        )


def _check_lengths(
    tokens: Tensor, mask: Tensor | None, lengths: Sequence[Sequence[int]], cache: Cache | None
) -> None:
    if mask is not None or cache is not None:
        raise DaybreakError("packed texts (lengths) go with neither a mask nor a cache")
    if len(lengths) != tokens.shape[0]:
        raise DaybreakError(f"lengths are given for {len(lengths)} rows, the tokens have {tokens.shape[0]}")
    for row in lengths:
        if sum(row) > tokens.shape[1] or any(part < 1 for part in row):
            raise DaybreakError(f"texts of lengths {list(row)} do not fit a row of {tokens.shape[1]} tokens")
