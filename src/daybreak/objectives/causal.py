"""The causal objective: predict every token from those before it (Radford et al. 2018, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from daybreak.architecture import Blanks
from daybreak.errors import DaybreakError
from daybreak.model.blanks import lay_out
from daybreak.model.reading import Reading
from daybreak.objectives.batch import NO_MASKING, UNSCORED, Batch


@dataclass(frozen=True)
class Causal:
    """Every token of a window is predicted once.

    A model that reads texts with blanks gets the window as what fills the blank of an empty context; the
    window's last two tokens are then left out to make room for the blank and the start token.
    """

    blanks: Blanks | None = None
    """Those of the architecture."""

    def batch(
        self,
        windows: Tensor,
        numbers: Sequence[int] | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
    ) -> Batch:
        """`windows` [batch, length + 1] hold inputs and, one place further, targets.

        With `lengths`, the last token of each part has no target: what follows it is another document. Raises
        `DaybreakError` for `lengths` with blanks.
        """
        del numbers  # nothing is drawn
        if lengths is not None:
            return self._apart(windows, lengths)
        if self.blanks is None:
            return Batch(Reading.of(windows[:, :-1]), windows[:, 1:])
        texts = windows[:, :-1]
        opening = torch.tensor([self.blanks.rest, self.blanks.start]).expand(len(texts), 2)
        tokens = torch.cat([opening, texts[:, :-2]], dim=1)
        targets = torch.cat([torch.full_like(texts[:, :1], UNSCORED), texts[:, :-1]], dim=1)
        return Batch(Reading.laid_out(tokens, lay_out(tokens, None, self.blanks)), targets)

    def _apart(self, windows: Tensor, lengths: Sequence[Sequence[int]]) -> Batch:
        if self.blanks is not None:
            raise DaybreakError(NO_MASKING)
        length = windows.shape[1] - 1
        targets = windows[:, 1:].clone()
        inputs = []
        for row, parts in enumerate(lengths):
            assert sum(parts) == length + 1
            ends = torch.tensor([end for end in accumulate(parts) if end <= length], dtype=torch.int64)
            targets[row, ends - 1] = UNSCORED
            # The window's last token is read by nobody.
            inputs.append([*parts[:-1], parts[-1] - 1] if parts[-1] > 1 else list(parts[:-1]))
        return Batch(Reading.of(windows[:, :-1], lengths=inputs), targets)
