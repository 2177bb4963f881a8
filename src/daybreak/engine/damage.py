"""What quantising costs: the quantised model beside the one it was made from, on a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder

WINDOW = 512
"""Tokens of a stretch; each is predicted from those before it in its stretch."""


@dataclass(frozen=True)
class Damage:
    """Means over all predicted tokens."""

    tokens: int
    before: float
    """The original's loss, in nats per token."""
    after: float
    kl: float
    """Of the quantised model's next tokens from the original's, in nats."""
    agreement: float
    """How often both think the same token most likely."""

    @property
    def perplexities(self) -> tuple[float, float]:
        """The original's and the quantised model's."""
        return math.exp(self.before), math.exp(self.after)

    @property
    def increase(self) -> float:
        """Of the perplexity: 0.01 is one in a hundred."""
        return math.exp(self.after - self.before) - 1


@torch.inference_mode()
def damage(original: Decoder, quantised: Decoder, tokens: Sequence[int]) -> Damage:
    """Compare both on `tokens`. Raises `DaybreakError` where there is nothing to predict."""
    parts = stretches(tokens, original.architecture.context)
    sums = torch.zeros(4, dtype=torch.float64)
    for part in parts:
        sums += _sums(original, quantised, torch.tensor([part]))
    count = sum(len(part) - 1 for part in parts)
    before, after, kl, agreement = (sums / count).tolist()
    return Damage(count, before, after, max(kl, 0.0), agreement)


def stretches(tokens: Sequence[int], context: int) -> list[Sequence[int]]:
    """The parts of a text that are read by themselves. Raises `DaybreakError` where there is nothing to
    predict."""
    length = min(WINDOW, context)
    parts = [tokens[first : first + length] for first in range(0, len(tokens), length)]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        raise DaybreakError("the text has fewer than two tokens, so that there is nothing to compare on")
    return parts


def _sums(original: Decoder, quantised: Decoder, tokens: Tensor) -> Tensor:
    """Losses of both, KL, and agreements, added up over a stretch [1, length]."""
    one, other = (each.logits(tokens[:, :-1])[0].log_softmax(-1) for each in (original, quantised))
    wanted = tokens[0, 1:, None]
    losses = [-each.gather(1, wanted).double().sum() for each in (one, other)]
    kl = (one.exp() * (one - other)).double().sum()
    return torch.stack([*losses, kl, (one.argmax(-1) == other.argmax(-1)).double().sum()])
