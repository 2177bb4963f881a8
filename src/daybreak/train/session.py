"""A run in progress: the loop, and what it does every so many steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from daybreak.data.loader import Loader, Windows
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.objectives.batch import Objective
from daybreak.train import parallel
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.course import Course
from daybreak.train.evaluation import Evaluation, continuations
from daybreak.train.optimizers import highest_rates, set_options, set_rates
from daybreak.train.precision import Loss
from daybreak.train.records import Records
from daybreak.train.settings import Settings
from daybreak.train.state import put_back, tensors_of
from daybreak.train.step import Scale, batches, gradient, share
from daybreak.train.stop import Stop
from daybreak.train.watch import Seen, Verdict, Watch
from daybreak.train.world import World

Ending = Literal["finished", "stopped"]


@dataclass
class Progress:
    """Where a run stands: with the weights and the optimizers' state, all that a restart needs to know."""

    step: int = 0
    """Steps done."""
    position: int = 0
    """The next sequence of the data's order; batches that were skipped by a roll back lie behind it."""
    rate: float = 1.0
    """Factor on the learning rate by which roll backs have lowered it."""
    scale: float | None = None
    """float16: the loss scale."""
    clean: int = 0
    """float16: steps since the scale last changed."""
    averaged: int = 0
    """Steps that the moving average has seen."""

    def adapt_scale(self, overflow: bool, window: int) -> None:
        """Half of the scale after an overflow, twice after `window` steps without one."""
        if self.scale is None:
            return
        self.clean = 0 if overflow else self.clean + 1
        if overflow:
            self.scale /= 2
        elif self.clean >= window:
            self.scale, self.clean = self.scale * 2, 0


@dataclass(eq=False)
class Session:
    """Everything that takes part in a run; made by `daybreak.train.run`."""

    settings: Settings
    world: World
    model: LanguageModel
    objective: Objective
    loss_of: Loss
    """The sum of the losses of a batch."""
    plain_loss_of: Loss
    """The same uncompiled, for batches of any shape."""
    optimizers: Sequence[Optimizer]
    average: dict[str, Tensor] | None
    """The moving average of the weights, by parameter names."""
    course: Course
    loader: Loader
    evaluation: Evaluation | None
    checkpoints: Checkpoints
    watch: Watch
    records: Records
    progress: Progress

    def train(self, stop: Stop) -> Ending:
        """Go on until the course is run or `stop` is asked for; a checkpoint is left in either case.

        Raises `DaybreakError` when the watcher ends the run, and when a checkpoint cannot be written.
        """
        settings, progress = self.settings, self.progress
        if progress.step >= self.course.steps:
            return "finished"
        reading = self._reading()
        while progress.step < self.course.steps:
            if self.world.agree(stop.asked):
                self.save()
                self.checkpoints.wait()
                return "stopped"
            began = time.perf_counter()
            numbers, windows = next(reading)
            rate = self._rate()
            set_rates(self.optimizers, highest_rates(settings.optimizer), rate)
            seen = self._gradient(numbers, windows)
            verdict = self.watch.look(seen)
            if verdict.action == "go":
                self._move(seen)
            self._forget_gradient()
            self._advance(seen, verdict, began)
            if verdict.action == "stop":
                assert verdict.event is not None
                raise DaybreakError(verdict.event.text)
            if verdict.action == "roll_back" and self._roll_back(verdict):
                reading = self._reading()
                continue
            if settings.evaluation.every and progress.step % settings.evaluation.every == 0:
                self.evaluate()
            if progress.step % settings.checkpoints.every == 0 and progress.step < self.course.steps:
                self.save()
        self.save()
        self.checkpoints.wait()
        return "finished"

    def save(self) -> None:
        """A checkpoint of this moment. What is known of the steps so far is on the disk before it counts."""
        self.records.saving(self.progress.step, self._lr())
        tensors = tensors_of(self.model.decoder, self.optimizers, self.average)
        numbers = {
            "progress": dataclasses.asdict(self.progress),
            "watch": self.watch.state(),
            "data": self.loader.fingerprint,
        }
        self.checkpoints.save(self.progress.step, tensors, numbers)

    def restore(self, step: int) -> Mapping[str, Any]:
        """Become what was saved at `step`, but for the watcher; returns all numbers that were saved, the
        watcher's state under `watch`."""
        numbers = self.checkpoints.numbers(step)
        if numbers["data"] != self.loader.fingerprint:
            raise DaybreakError(
                "the data is not what this run was started with (the files, data.weights, data.context, "
                "data.masking or seed have changed), so it cannot go on from where it was; start a new run "
                "with --model.start"
            )
        tensors = tensors_of(self.model.decoder, self.optimizers, self.average)
        self.checkpoints.load(step, tensors)
        put_back(tensors, self.model.decoder, self.optimizers, self.average)
        set_options(self.optimizers, self.settings.optimizer)  # these may have changed since
        begun = self.progress.scale
        vars(self.progress).update(numbers["progress"])
        if begun is None or self.progress.scale is None:  # another dtype than before
            self.progress.scale, self.progress.clean = begun, 0
        return numbers

    def evaluate(self, averaged: bool = False) -> None:
        """Score the held-out text and let the model write, as the settings say; `averaged`: with the moving
        average for its weights, which stays in their place."""
        settings, decoder = self.settings.evaluation, self.model.decoder
        if averaged:
            self._take_average()
        decoder.eval()
        if self.evaluation:
            scores = self.evaluation.score(self.model, self.objective, self.plain_loss_of)
            self.records.scores(self.progress.step, scores)
        if settings.prompts:
            written = continuations(self.model, settings.prompts, settings.sample_tokens)
            self.records.samples(self.progress.step, written)
        decoder.train()
        parallel.gather_back(decoder)

    def _reading(self) -> Iterator[tuple[range, Windows]]:
        """From where the run stands: which sequences this process reads in each step, and they themselves."""
        first, position, course = self.progress.step, self.progress.position, self.course

        def requests() -> Iterator[range]:
            begin = position
            for step in range(first, course.steps):
                yield share(course.batch(step), begin, self.world)
                begin += course.batch(step)

        return zip(requests(), self.loader.ahead(requests()), strict=True)

    def _gradient(self, numbers: range, windows: Windows) -> Seen:
        parts = batches(self.objective, windows, numbers, self.settings.batch.micro, self.world.device)
        progress = self.progress
        number, tokens = progress.step + 1, self.settings.batch.micro * self.course.context
        scale = None if progress.scale is None else Scale(progress.scale, tokens)
        return gradient(self.model.decoder, self.loss_of, parts, self.world, number, scale)

    @torch.no_grad()
    def _move(self, seen: Seen) -> None:
        decoder, clip = self.model.decoder, self.settings.optimizer.clip
        if clip is not None:
            norm = torch.tensor(seen.gradient_norm, device=self.world.device)
            parallel.clip(decoder, clip, norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self._extend_average(self.average)

    def _extend_average(self, averages: dict[str, Tensor]) -> None:
        """A constant decay would keep the fresh weights in the average for long; it begins small instead
        (TensorFlow's ExponentialMovingAverage, num_updates)."""
        assert self.settings.ema is not None
        seen = self.progress.averaged = self.progress.averaged + 1
        decay = min(self.settings.ema, seen / (9 + seen))
        weights = dict(self.model.decoder.named_parameters())
        for name, average in averages.items():
            average.lerp_(weights[name].detach(), 1 - decay)

    @torch.no_grad()
    def _take_average(self) -> None:
        assert self.average is not None
        for name, parameter in self.model.decoder.named_parameters():
            parameter.copy_(self.average[name])

    def _forget_gradient(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _advance(self, seen: Seen, verdict: Verdict, began: float) -> None:
        """The step counts, whether it was taken or not."""
        progress, count, lr = self.progress, self.course.batch(self.progress.step), self._lr()
        numbers = range(progress.position, progress.position + count)
        progress.position += count
        progress.step += 1
        progress.adapt_scale(seen.overflow, self.settings.precision.loss_scale_window)
        self.records.step(seen, verdict, numbers, progress, lr, time.perf_counter() - began)
        if verdict.event is not None:
            self.records.event(verdict, self.loader.documents(numbers) if self.world.main else [])

    def _rate(self) -> float:
        """Factor on the highest learning rates in the step that comes."""
        return self.course.rate(self.progress.step) * self.progress.rate

    def _lr(self) -> float:
        return self._rate() * self.settings.optimizer.lr

    def _roll_back(self, verdict: Verdict) -> bool:
        """Return to a checkpoint some steps ago, but leave out the data up to here (metaseq's practice for
        OPT-175B); False where there is no such checkpoint, so that the step is only skipped."""
        settings, now = self.settings.watch, dataclasses.replace(self.progress)
        step = self.checkpoints.newest(before=max(now.step - settings.back, 0) + 1)
        # One that a signal asked for is passed over: a run that was never interrupted would not have it.
        while step is not None and step % self.settings.checkpoints.every:
            step = self.checkpoints.newest(before=step)
        if step is None:
            self.records.note(f"there is no checkpoint {settings.back} steps ago; the batch is skipped")
            return False
        reason = self.watch.returned(step, self.restore(step)["watch"])
        if reason is not None:
            raise DaybreakError(reason)
        self.progress.position = now.position
        self.progress.rate = now.rate * settings.lr_factor
        assert verdict.event is not None
        self.records.rolled_back(now, self.progress, verdict.event.kind)
        # The way from here is another one: a restart must not take the old one again.
        self.checkpoints.drop_after(step)
        self.save()
        return True
