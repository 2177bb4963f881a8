"""The training loop, on one device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Batch
from daybreak.quickstart.optimizers import set_rates
from daybreak.quickstart.schedule import Budget, linear
from daybreak.train.precision import Loss
from daybreak.train.stop import Stop

REPORT_EVERY = 10
"""Steps."""


@dataclass(frozen=True)
class Point:
    """Where training stands."""

    step: int
    """Steps done."""
    fraction: float
    """Of the budget."""
    tokens: int
    """Tokens read so far."""
    loss: float
    """Nats per predicted token, mean since the last report."""
    rate: float
    """Factor on the learning rates."""
    seconds: float
    """Since the first step began."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def seconds_left(self) -> float:
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction else math.inf


def train(
    decoder: Decoder,
    loss_of: Loss,
    batches: Iterator[Batch],
    budget: Budget,
    chosen: Sequence[Optimizer],
    stop: Stop,
    report: Callable[[Point], None],
) -> int:
    """Train `decoder` in place by the optimizers `chosen` until the budget is used up or `stop` is asked for;
    returns the steps done.

    `report` is called every ten steps. Raises `DaybreakError` when the loss stops being a number, before that
    step changes the weights.
    """
    began = time.perf_counter()
    step = tokens = 0
    losses: list[float] = []
    decoder.train()
    while (fraction := budget.fraction(step)) < 1 and not stop.asked:
        batch = next(batches)
        set_rates(chosen, linear(fraction))
        loss = loss_of(decoder, batch)
        losses.append(_finite(loss, step))
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        tokens += batch.targets.numel()
        if every(REPORT_EVERY, step):
            seconds = time.perf_counter() - began
            report(Point(step, fraction, tokens, sum(losses) / len(losses), linear(fraction), seconds))
            losses.clear()
    decoder.eval()
    return step


def every(steps: int, step: int) -> bool:
    """Is it time for what happens every so many steps?"""
    return step % steps == 0


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise DaybreakError(
            f"the loss is {value} at step {step}, so training stopped before that step changed the weights; "
            "lower the learning rate or try another seed"
        )
    return value
