"""The causal objective: predict every token from those before it (Radford et al. 2018, equation 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.architecture import Blanks
from daybreak.model.blanks import lay_out
from daybreak.model.reading import Reading
from daybreak.objectives.batch import UNSCORED, Batch


@dataclass(frozen=True)
class Causal:
    """Every token of a window is predicted once.

    A model that reads texts with blanks gets the window as what fills the blank of an empty context; the
    window's last two tokens are then left out to make room for the blank and the start token.
    """

    blanks: Blanks | None = None
    """Those of the architecture."""

    def batch(self, windows: Tensor, step: int = 0) -> Batch:
        """`windows` [batch, length + 1] hold inputs and, one place further, targets."""
        del step  # nothing is drawn
        if self.blanks is None:
            return Batch(Reading.of(windows[:, :-1]), windows[:, 1:])
        texts = windows[:, :-1]
        opening = torch.tensor([self.blanks.rest, self.blanks.start]).expand(len(texts), 2)
        tokens = torch.cat([opening, texts[:, :-2]], dim=1)
        targets = torch.cat([torch.full_like(texts[:, :1], UNSCORED), texts[:, :-1]], dim=1)
        return Batch(Reading.laid_out(tokens, lay_out(tokens, None, self.blanks)), targets)
