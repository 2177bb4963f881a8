"""What stands around a text with blanks: the tokens that a model reads before it writes a piece, and those
that it never writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daybreak import families
from daybreak.architecture import Architecture, Blanks, Learned
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.prompts import Model


@dataclass(frozen=True)
class Frame:
    """The special tokens around every text of a model with blanks, as ids; see `Family.frame`."""

    blanks: Blanks
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    closes_blanks: bool
    """Behind a blank at the end of a text stands `closing`, too."""

    @classmethod
    def of(cls, model: Model) -> Frame:
        """Raises `DaybreakError` for a model that reads from left to right only."""
        blanks = model.architecture.blanks
        if blanks is None:
            able = [name for name in families.NAMES if families.by_name(name).base.blanks is not None]
            raise DaybreakError(
                f"{model.family.title} reads from left to right only, so it cannot fill blanks; "
                f"families that can: {', '.join(able)}"
            )
        opening, closing = (_first_known(model, spellings) for spellings in model.family.frame)
        return cls(blanks, opening, closing, model.family.closes_blanks)

    def prompt(self, text: Sequence[int], *, goes_on: bool = False) -> list[int]:
        """A text's ids, masks among them -> what is read before the first new token of a piece.

        Where a text `goes_on` behind the given part, it is not closed. Framing tokens that it brings along
        are not put there twice.
        """
        opening = () if tuple(text[: len(self.opening)]) == self.opening else self.opening
        closed = goes_on or tuple(text[len(text) - len(self.closing) :]) == self.closing
        closed = closed or (not self.closes_blanks and text[-1] in self.blanks.masks)
        closing = () if closed else self.closing
        return [*opening, *text, *closing, self.blanks.start]

    def endings(self) -> tuple[int, ...]:
        """Tokens that end a piece, besides the model's end-of-text tokens."""
        return (self.blanks.end, *self.closing)

    def silent(self, model: Model) -> tuple[int, ...]:
        """Tokens that a model only reads: masks, start of a piece, opening, begin of text, padding."""
        known = () if model.tokenizer is None else (model.tokenizer.bos_id, model.tokenizer.pad_id)
        given = (token for token in known if token is not None)
        return (*self.blanks.masks, self.blanks.start, *self.opening, *given)


def _first_known(model: Model, spellings: Iterable[str]) -> tuple[int, ...]:
    if model.tokenizer is None:
        return ()
    ids = (model.tokenizer.special_id(text) for text in spellings)
    return tuple(token for token in ids if token is not None)[:1]


def check_layout(name: str, tokens: Sequence[int], blanks: Blanks) -> None:
    """Raises `DaybreakError` for ids that are no context with a blank and then the start of a piece."""
    masks = ", ".join(map(str, blanks.masks))
    if blanks.start not in tokens:
        raise DaybreakError(
            f"{name} has no start token (id {blanks.start}), behind which this model writes; end the ids "
            f"with a mask token ({blanks.rest} goes on to the end of the text) and with it"
        )
    if not any(token in blanks.masks for token in tokens[: tokens.index(blanks.start)]):
        raise DaybreakError(
            f"{name} has the start token (id {blanks.start}) but no blank before it; put one of the mask "
            f"tokens (ids {masks}) into the text, {blanks.rest} at its end to go on"
        )


def room(architecture: Architecture, tokens: Sequence[int]) -> int | None:
    """New tokens that a table of positions has room for after these; None: there is no end.

    The last new token is not read back, so it needs no row of the table. Below 1 if `tokens` are too many
    themselves.
    """
    if not isinstance(architecture.positions, Learned):
        return None
    context, blanks = architecture.context, architecture.blanks
    if blanks is None:
        return context - len(tokens) + 1
    first = tokens.index(blanks.start)
    whole = tokens[:first]
    if first > context:
        return context - first
    ends = []
    if architecture.positions.blocks:
        ends.append(context - _inside(tokens, blanks) + 1)
    if blanks.runs_on and blanks.rest in whole:
        ends.append(context - len(tokens) + 1)
    return min(ends, default=None)


def _inside(tokens: Sequence[int], blanks: Blanks) -> int:
    """How many tokens the piece that is being written has, its start among them."""
    first = tokens.index(blanks.start)
    context = tokens[:first]
    pieces = 1 if blanks.rest in context else sum(token in blanks.masks for token in context)
    starts = [place for place, token in enumerate(tokens) if token == blanks.start]
    return len(tokens) - starts[min(len(starts), pieces) - 1]
