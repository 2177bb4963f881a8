"""What every objective comes down to: a batch that is read, targets at some of its places, and their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from daybreak.model.decoder import Decoder
from daybreak.model.reading import Reading

UNSCORED = -100
"""A target that does not count."""
NO_MASKING = (
    "a design with blanks makes a context and its pieces of every sequence, and cannot read the documents in "
    "it apart; leave masking (data.masking) off"
)
ROWS = 512
"""Tokens whose logits are in memory at once."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What is read, and what is to be predicted where."""

    reading: Reading
    targets: Tensor
    """[batch, length] int64: the token to be predicted at each place, `UNSCORED` where there is none."""


class Objective(Protocol):
    """What a model is to learn from a text."""

    def batch(
        self, windows: Tensor, numbers: Sequence[int], lengths: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """What to read and to predict of `windows` [batch, length + 1] int64, stretches of text.

        `numbers` says of every row which sequence of the run it is. What is drawn for a row depends on the
        objective's seed and on this number alone: not on its place in the batch, so that processes may share
        the rows of a step, and not on what was drawn before, so that a run which goes on sees what it would
        have seen. `lengths` gives per row the lengths of the parts that belong to different documents (they
        add up to length + 1), which are then read and predicted each by itself.
        """


def loss(decoder: Decoder, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats per predicted token."""
    return token_losses(decoder, batch).sum() / (batch.targets != UNSCORED).sum()


def token_losses(decoder: Decoder, batch: Batch) -> Tensor:
    """-log p(target) in nats for every place of `batch`, 0 where it is `UNSCORED`.

    [batch * length] float32. The logits of a batch are many times larger than anything else in a small model
    (4096 tokens x 4096 entries are 64 MiB in float32), so they are made a few hundred tokens at a time, which
    stays in the cache: 9 % faster on two cores.
    """
    hidden = decoder(batch.reading).flatten(0, 1)  # [batch * length, width]
    wanted = batch.targets.reshape(-1)
    losses = []
    for first in range(0, len(wanted), ROWS):
        rows = slice(first, first + ROWS)
        logits = decoder.unembed(hidden[rows]).float()  # [rows, vocabulary]
        losses.append(functional.cross_entropy(logits, wanted[rows], reduction="none", ignore_index=UNSCORED))
    return torch.cat(losses)
