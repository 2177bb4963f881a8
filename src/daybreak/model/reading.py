"""Positions and sight are data: padding, packing, the cache's offset and a context with blanks become one
`Reading`, built once per call.

The decoder never sees an attention mask. It gets a `Reading`, which knows each token's position and who may
see whom, and which can also say "plain causal", so that the fused path is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.architecture import Blanks
from daybreak.errors import DaybreakError
from daybreak.model.blanks import Layout, lay_out
from daybreak.model.cache import Cache


@dataclass(frozen=True, eq=False)
class Reading:
    """A batch of token ids with everything the layers need to know about their arrangement."""

    tokens: Tensor
    """[batch, length] int64"""
    positions: Tensor
    """[batch or 1, length] int64: place in its own text, from 0; in a piece that fills a blank, the blank's.
    Anything where the token is padding.
    """
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
    blocks: Tensor | None = None
    """[batch, length] int64: place within a piece that fills a blank, from 1; 0 in the context; None: no
    blanks.
    """
    open_keys: Tensor | None = None
    """[batch, keys] bool: keys of a context, which earlier tokens of their text see, too; None: no blanks."""
    given: bool = False
    """The layout was given and not read off the tokens, so what follows cannot be laid out from them."""

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
        blanks: Blanks | None = None,
    ) -> Reading:
        """Arrange `tokens` [batch, length] int64.

        `mask` [batch, length] is True (or 1) for real tokens, wherever the padding stands; `lengths` gives
        per row the lengths of the texts packed into it one after another (what is left over is padding). With
        a `cache`, `tokens` continue it and `mask` speaks of the new tokens only. With `blanks`, each text is
        a context with mask tokens and then the pieces that fill them; see `daybreak.model.blanks`. Raises
        `DaybreakError` for shapes that do not fit.
        """
        _check(tokens, mask, lengths, cache)
        if lengths is not None:
            return _packed(tokens, lengths, blanks)
        real = None if mask is None else mask.to(torch.bool)
        if real is not None and bool(real.all()):
            real = None
        if blanks is not None:
            return _with_blanks(tokens, real, cache, blanks)
        if cache is not None and cache.length:
            return _continued(tokens, real, cache)
        if real is None:
            places = torch.arange(tokens.shape[1], device=tokens.device)[None]  # [1, length]
            return cls(tokens, places, places)
        places = _count(real)
        # Padding on the right is hidden from real tokens by causality alone.
        hidden = real if bool((real[:, 1:] & ~real[:, :-1]).any()) else None
        return cls(tokens, places, places, real=real, real_keys=hidden)

    @classmethod
    def laid_out(cls, tokens: Tensor, layout: Layout, documents: Tensor | None = None) -> Reading:
        """Arrange `tokens` [batch, length] as `layout` says, for pieces in another order than their blanks.

        `documents` [batch, length] int64 tells packed texts apart; -1 is padding.
        """
        real = None if documents is None or bool((documents >= 0).all()) else documents >= 0
        return cls(
            tokens,
            layout.positions,
            layout.positions,
            real=real,
            documents=documents,
            blocks=layout.blocks,
            open_keys=layout.context,
            given=True,
        )

    def is_plain_causal(self, window: int | None) -> bool:
        """Every token sees itself and all before it, and nothing else needs saying."""
        narrow = window is not None and window < self.length
        apart = self.real_keys is not None or self.documents is not None or self.open_keys is not None
        return self.start == 0 and not apart and not narrow

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
        if self.open_keys is not None:
            allowed = allowed | self.open_keys[:, None]
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


def _with_blanks(tokens: Tensor, real: Tensor | None, cache: Cache | None, blanks: Blanks) -> Reading:
    before = 0 if cache is None else cache.length
    if cache is None or not before:
        layout = lay_out(tokens, real, blanks)
        return Reading(
            tokens,
            layout.positions,
            layout.positions,
            real=real,
            real_keys=real,
            blocks=layout.blocks,
            open_keys=layout.context,
        )
    fresh = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    known = torch.cat([cache.seen[:, :before], fresh], dim=1)
    layout = lay_out(torch.cat([cache.tokens[:, :before], tokens], dim=1), known, blanks)
    if bool(layout.context[:, before:].any()):
        raise DaybreakError(
            f"the cache holds {before} tokens of a context that is not finished: what follows changes what "
            f"they mean. Read the whole context and the start token (id {blanks.start}) in one call"
        )
    padded = cache.padded or real is not None
    return Reading(
        tokens,
        layout.positions[:, before:],
        layout.positions,
        start=before,
        real=real,
        real_keys=known if padded else None,
        blocks=layout.blocks[:, before:],
        open_keys=layout.context,
    )


def _packed(tokens: Tensor, lengths: Sequence[Sequence[int]], blanks: Blanks | None) -> Reading:
    if blanks is not None:
        return Reading.laid_out(tokens, *_packed_blanks(tokens, lengths, blanks))
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


def _packed_blanks(tokens: Tensor, lengths: Sequence[Sequence[int]], blanks: Blanks) -> tuple[Layout, Tensor]:
    documents = torch.full_like(tokens, -1)
    whole = Layout(torch.zeros_like(tokens), torch.zeros_like(tokens), tokens < 0)
    for row, parts in enumerate(lengths):
        begin = 0
        for number, part in enumerate(parts):
            span = slice(begin, begin + part)
            documents[row, span] = number
            layout = lay_out(tokens[row : row + 1, span], None, blanks)
            whole.positions[row, span] = layout.positions[0]
            whole.blocks[row, span] = layout.blocks[0]
            whole.context[row, span] = layout.context[0]
            begin += part
    return whole, documents


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
