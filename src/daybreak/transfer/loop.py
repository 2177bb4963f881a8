"""The loop behind ULMFiT's runs: groups of layers with rates of their own, some of them frozen at times.

Everything random is a function of the seed and the step, and what is carried from step to step is kept in the
checkpoints, so that a run that was ended goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daybreak.errors import DaybreakError
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.run_folder import CHECKPOINTS
from daybreak.train.run_status import Ending
from daybreak.train.settings import CheckpointSettings
from daybreak.train.state import complete
from daybreak.train.stop import Stop
from daybreak.train.tuning_records import TuningRecords
from daybreak.transfer.settings import TransferSettings


class Task(ABC):
    """What is learned, and from what."""

    figure: str
    """What of `evaluate` says which weights are best."""
    higher: bool
    """Is more of it better?"""
    model: nn.Module
    epoch_steps: int
    """Steps in which every text is read once."""
    carried: Mapping[str, Tensor]
    """What one step leaves to the next beside the weights; changed in place."""

    @property
    @abstractmethod
    def settings(self) -> TransferSettings:
        """Of the run."""

    @property
    def steps(self) -> int:
        return self.settings.epochs * self.epoch_steps

    @abstractmethod
    def groups(self) -> list[list[nn.Parameter]]:
        """The trained parameters, those of the first layers first."""

    @abstractmethod
    def rates(self, step: int) -> list[float | None]:
        """The rate of each group in `step` (from 0); None: it is frozen."""

    @abstractmethod
    def loss(self, step: int) -> tuple[Tensor, int]:
        """What `step` costs, with a gradient, and how many tokens it read."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures of the held-out texts; empty without any."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what a user leaves with."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Lines for the logbook and the list of runs."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Of the texts: a run goes on with the same ones alone."""


@dataclass
class Progress:
    """All that a restart needs to know beside tensors."""

    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Read by them."""
    best: float | None = None
    """The best figure of the held-out texts so far."""
    best_step: int = 0
    """Steps done when it was reached."""


class Loop:
    """A run in progress."""

    def __init__(self, task: Task, folder: Path, records: TuningRecords) -> None:
        self.task, self.records, self.progress = task, records, Progress()
        settings, tell = task.settings, records.note
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, settings.checkpoints, tell)
        keep_best = CheckpointSettings(every=1, keep=2, background=False)
        self._best = Checkpoints(folder / "best", keep_best, tell)
        self._groups = task.groups()
        self._optimizer = torch.optim.AdamW(
            [{"params": group} for group in self._groups],
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )

    def train(self, stop: Stop) -> Ending:
        """Go on until all steps are done or `stop` is asked for; a checkpoint is left in either case."""
        task, progress, every = self.task, self.progress, self.task.settings.checkpoints.every
        task.model.train()
        while progress.step < task.steps:
            if stop.asked:
                self._save()
                return "stopped"
            began, rates = time.perf_counter(), task.rates(progress.step)
            self._thaw(rates)
            torch.manual_seed(seed_of("step", task.settings.seed, progress.step))
            loss, tokens = task.loss(progress.step)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = self._move(float(loss.detach()))
            progress.step += 1
            seconds, highest = time.perf_counter() - began, max(rate or 0.0 for rate in rates)
            progress.tokens += tokens
            figures = {"loss": loss.item()}
            self.records.step(progress.step, figures, norm, highest, tokens, seconds, progress.tokens)
            if progress.step % task.epoch_steps == 0:
                self._evaluate()
            if progress.step % every == 0 and progress.step < task.steps:
                self._save()
        self._save()
        return "finished"

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one."""
        step = self.checkpoints.newest()
        if step is None:
            return
        numbers = self.checkpoints.numbers(step)
        if numbers["data"] != self.task.fingerprint():
            raise DaybreakError(
                "the texts are not those that this run was started with, so it cannot go on from where it "
                "was; start a new run with --out"
            )
        self.checkpoints.load(step, self._tensors())
        self.progress = Progress(**numbers["progress"])

    def take_best(self) -> int | None:
        """Put the best weights into the model; returns how many steps they had seen, None: there are none."""
        if self.progress.best is None:
            return None
        self._best.load(self.progress.best_step, {"model": self._weights()})
        return self.progress.best_step

    def _thaw(self, rates: Sequence[float | None]) -> None:
        for group, options, rate in zip(self._groups, self._optimizer.param_groups, rates, strict=True):
            options["lr"] = rate or 0.0
            for parameter in group:
                parameter.requires_grad_(rate is not None)

    def _move(self, loss: float) -> float:
        """The optimizer's step; returns the norm of the gradient. Frozen parameters have none, and stay."""
        gradients = [one.grad for group in self._groups for one in group if one.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DaybreakError(
                f"step {self.progress.step + 1} has the loss {loss} and a gradient of norm {norm}, and was "
                "not taken; lower --lr"
            )
        if (clip := self.task.settings.clip) is not None:
            torch._foreach_mul_(gradients, min(1.0, clip / (norm + 1e-6)))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _evaluate(self) -> None:
        task, progress = self.task, self.progress
        task.model.eval()
        scores = task.evaluate()
        task.model.train()
        if not scores:
            return
        self.records.scores(progress.step, scores)
        figure, best = scores[task.figure], progress.best
        if math.isfinite(figure) and (best is None or (figure > best if task.higher else figure < best)):
            progress.best, progress.best_step = figure, progress.step
            self._best.save(progress.step, {"model": self._weights()}, {})
            self._save()

    def _save(self) -> None:
        self.records.saving(self.progress.step)
        numbers = {"progress": asdict(self.progress), "data": self.task.fingerprint()}
        self.checkpoints.save(self.progress.step, self._tensors(), numbers)
        self.checkpoints.wait()

    def _weights(self) -> dict[str, Tensor]:
        return {name: one.detach() for name, one in self.task.model.state_dict().items()}

    def _tensors(self) -> dict[str, Any]:
        """The tree of a checkpoint; it has the state of frozen parameters, too, so that it is always the
        same."""
        frozen = [one for group in self._groups for one in group if not one.requires_grad]
        for one in frozen:
            one.requires_grad_(True)
        complete(self._optimizer)
        for one in frozen:
            one.requires_grad_(False)
        state = self._optimizer.state
        every = [one for group in self._groups for one in group]
        moments = {str(number): dict(state[one]) for number, one in enumerate(every)}
        return {"model": self._weights(), "optimizer": moments, "carried": dict(self.task.carried)}


def seed_of(*words: object) -> int:
    """A seed that depends on these words and nothing else."""
    return int.from_bytes(blake2b(repr(words).encode(), digest_size=7).digest(), "little")


def fingerprint(texts: Sequence[Sequence[int]], labels: Sequence[int] = ()) -> str:
    """Of tokenised texts and their classes."""
    digest = blake2b(digest_size=16)
    for text in texts:
        digest.update(repr(list(text)).encode())
    digest.update(repr(list(labels)).encode())
    return digest.hexdigest()
