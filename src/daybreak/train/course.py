"""The course of a run: how many sequences each step reads, how long it goes on, and the learning rate there.

Everything is a function of the step's number, so a run that goes on at a step goes on exactly.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from daybreak.errors import DaybreakError
from daybreak.train.amount import Amount
from daybreak.train.settings import BatchSettings, ScheduleSettings, Settings


@dataclass(frozen=True)
class Stage:
    """Steps of one batch size."""

    step: int
    """The first."""
    sequences: int
    """Read by the steps before it."""
    size: int
    """Sequences of each of its steps."""


class Course:
    """What `settings` say about a run on sequences of `context` tokens. Raises `DaybreakError` for amounts
    that cannot be meant."""

    def __init__(self, settings: Settings, context: int) -> None:
        self.context = context
        self.stages = _stages(settings.batch, context)
        self.sequences = self._sequences(Amount.parse(settings.length, "length"), 0.0)
        self.steps = self._step_at(self.sequences)
        """How many steps the run has."""
        self._schedule = settings.schedule
        self._warmup = self._sequences(Amount.parse(settings.schedule.warmup, "schedule.warmup"))
        self._decay = self._sequences(Amount.parse(_decay(settings.schedule), "schedule.decay"))

    def batch(self, step: int) -> int:
        """Sequences that `step` (from 0) reads."""
        return self._stage(step).size

    def before(self, step: int) -> int:
        """Sequences that the steps before `step` read."""
        stage = self._stage(step)
        return stage.sequences + (step - stage.step) * stage.size

    def rate(self, step: int) -> float:
        """Factor on the highest learning rate in `step`, from 0 to 1."""
        done, end = self.before(step), self.before(step + 1)
        warm = min(1.0, end / self._warmup) if self._warmup else 1.0
        return warm * self._after_warmup(done)

    def _after_warmup(self, done: int) -> float:
        schedule = self._schedule
        if schedule.name == "constant":
            return 1.0
        if schedule.name == "inverse_sqrt":
            # (Vaswani et al. 2017, section 5.3), scaled so that it begins at 1 where the warm-up ends.
            start = max(self._warmup, 1.0)
            return max(schedule.floor, math.sqrt(start / max(done, start)))
        if schedule.name == "wsd":
            begin, end = self.sequences - self._decay, self.sequences
        else:
            begin, end = self._warmup, self._decay
        gone = min(max((done - begin) / max(end - begin, 1.0), 0.0), 1.0)
        left = (1 + math.cos(math.pi * gone)) / 2 if schedule.name == "cosine" else 1 - gone
        return schedule.floor + (1 - schedule.floor) * left

    def _stage(self, step: int) -> Stage:
        return self.stages[bisect.bisect_right([stage.step for stage in self.stages], step) - 1]

    def _step_at(self, sequences: float) -> int:
        """The first step before which so many are read."""
        number = bisect.bisect_right([stage.sequences for stage in self.stages], sequences) - 1
        stage = self.stages[number]
        return stage.step + math.ceil((sequences - stage.sequences) / stage.size)

    def _sequences(self, amount: Amount, whole: float | None = None) -> float:
        if amount.unit == "%":
            return (self.sequences if whole is None else whole) * amount.value / 100
        if amount.unit == "tokens":
            return amount.value / self.context
        if amount.unit == "sequences":
            return amount.value
        return self.before(round(amount.value))


def _decay(schedule: ScheduleSettings) -> str:
    if schedule.decay is not None:
        return schedule.decay
    return "10 %" if schedule.name == "wsd" else "100 %"


def _stages(batch: BatchSettings, context: int) -> list[Stage]:
    """The batch grows in equal parts of what it grows over (Megatron-LM's ramp)."""
    first = batch.sequences if batch.ramp_from is None else batch.ramp_from
    by = batch.ramp_by or first
    if not 1 <= first <= batch.sequences or by < 1 or (batch.sequences - first) % by:
        raise DaybreakError(
            f"the batch cannot grow from {first} to {batch.sequences} sequences by {by}; "
            "batch.ramp_by must divide the difference"
        )
    over = Amount.parse(batch.ramp_over, "batch.ramp_over")
    if over.unit == "%":
        raise DaybreakError("batch.ramp_over is a share of the run; say it in steps, sequences or tokens")
    growths = (batch.sequences - first) // by
    stages = [Stage(0, 0, first)]
    for number in range(1, growths + 1):
        end, last = over.value * number / growths, stages[-1]
        if over.unit == "steps":
            step = max(last.step, round(end))
        else:
            sequences = end / context if over.unit == "tokens" else end
            step = last.step + max(0, math.ceil((sequences - last.sequences) / last.size))
        stages.append(Stage(step, last.sequences + (step - last.step) * last.size, first + number * by))
    return stages
