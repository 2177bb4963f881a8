"""Where the tokens of a text with blanks stand, as it grows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from daybreak.architecture import Blanks
from daybreak.model.blanks import lay_out


class GrowingLayout:
    """What `daybreak.model.blanks.lay_out` says, without laying out the whole text for each new token."""

    def __init__(self, blanks: Blanks, tokens: Sequence[int]) -> None:
        """`tokens` have the start of a piece already."""
        self._blanks = blanks
        self._lay_out(tokens)

    def of(self, tokens: Sequence[int], begin: int, end: int) -> tuple[list[int], list[int]]:
        """Positions and places within a piece of a part of `tokens`, which have only grown since."""
        if self._blanks.start in tokens[len(self._positions) : end]:
            self._lay_out(tokens)
        while len(self._positions) < end:
            self._positions.append(self._positions[-1] + self._moves)
            self._blocks.append(self._blocks[-1] + 1)
        return self._positions[begin:end], self._blocks[begin:end]

    def _lay_out(self, tokens: Sequence[int]) -> None:
        found = lay_out(torch.tensor([list(tokens)]), None, self._blanks)
        self._positions: list[int] = found.positions[0].tolist()
        self._blocks: list[int] = found.blocks[0].tolist()
        self.context = int(found.context.sum())
        """Tokens that all others see."""
        endless = self._blanks.runs_on and self._blanks.rest in tokens[: self.context]
        self._moves = 1 if endless else 0
