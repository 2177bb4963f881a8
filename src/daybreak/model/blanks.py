"""Where the tokens of a text with blanks stand: what figure 2 of the paper on blank infilling
(arXiv 2103.10360) shows, read off the tokens.

Each text is a context, in which mask tokens stand for blanks, and then pieces that fill them, each opened by
the start token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.architecture import Blanks
from daybreak.errors import DaybreakError


@dataclass(frozen=True, eq=False)
class Layout:
    """Both rows of positions and the extent of the context, [batch, length] each."""

    positions: Tensor
    """int64: in the context the place in the text; in a piece that of its blank."""
    blocks: Tensor
    """int64: 0 in the context; in a piece 1 for its start token, then 2, 3, ..."""
    context: Tensor
    """bool: part of the context, which everything in the text sees; never padding."""


def lay_out(tokens: Tensor, real: Tensor | None, blanks: Blanks) -> Layout:
    """The layout of `tokens` [batch, length], one text per row; `real` is False for padding.

    The k-th piece belongs to the k-th mask of the context, or, where there is a [gMASK], the first piece to
    the first of these. A start token beyond the last blank is a token like any other (a model may write one).
    Raises `DaybreakError` for a piece without any blank.
    """
    real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    opens = (tokens == blanks.start) & real
    begun = opens.cumsum(1)  # [batch, length]: start tokens so far
    context = real & (begun == 0)
    marks = _marks(tokens, context, blanks)
    pieces = torch.minimum(begun, marks.sum(1, keepdim=True))  # [batch, length]: 0 in the context
    _check(begun, pieces, blanks)
    places = (real.long().cumsum(1) - 1).clamp(min=0)
    begins = torch.where(opens & (pieces == begun), places, -1).cummax(1).values
    inside = pieces > 0
    stands = torch.where(inside, _places_of(marks, places).gather(1, pieces), places)
    if blanks.runs_on:
        endless = (marks & (tokens == blanks.rest)).any(1, keepdim=True)  # [batch, 1]
        stands = torch.where(endless, places, stands)
    return Layout(stands, torch.where(inside, places - begins + 1, 0), context)


def _marks(tokens: Tensor, context: Tensor, blanks: Blanks) -> Tensor:
    """[batch, length] bool: the blanks that pieces fill, in this order."""
    rest = context & (tokens == blanks.rest)
    first = rest & (rest.cumsum(1) == 1)
    masks = torch.tensor(blanks.masks, device=tokens.device)
    every = context & torch.isin(tokens, masks)
    return torch.where(rest.any(1, keepdim=True), first, every)


def _places_of(marks: Tensor, places: Tensor) -> Tensor:
    """[batch, length + 1] int64: at k the place of the k-th mark, counted from 1; 0 where there is none."""
    found = torch.zeros(marks.shape[0], marks.shape[1] + 1, dtype=torch.int64, device=marks.device)
    # Tokens that are no mark all land in column 0, which no piece asks for.
    return found.scatter(1, torch.where(marks, marks.cumsum(1), 0), places)


def _check(begun: Tensor, pieces: Tensor, blanks: Blanks) -> None:
    if bool(((begun > 0) & (pieces == 0)).any()):
        raise DaybreakError(
            f"a text has the start token (id {blanks.start}) but no blank before it; put one of the mask "
            f"tokens (ids {', '.join(map(str, blanks.masks))}) into the text, the last at its end to go on"
        )
