"""Where a tuning run stands: weights, optimizer, progress, and the checkpoints that keep them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, RMSprop

from daybreak.errors import DaybreakError
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.course import Course
from daybreak.train.optimizers import straighten
from daybreak.train.run_folder import CHECKPOINTS
from daybreak.train.settings import BatchSettings, CheckpointSettings, Settings
from daybreak.train.state import complete
from daybreak.train.tuning_settings import TuningOptimizer, TuningSettings

BEST = "best"


class TuningCourse:
    """How many steps a run on `size` examples has, and the learning rate in each."""

    def __init__(self, settings: TuningSettings, size: int) -> None:
        self.batch = settings.batch.examples
        """Examples of a step; the last one may have fewer."""
        self.examples = max(1, round(settings.epochs * size))
        """Examples of the run."""
        self.steps = math.ceil(self.examples / self.batch)
        if settings.steps not in (None, self.steps):
            self.steps = settings.steps
            self.examples = self.steps * self.batch
        whole = Settings(
            length=f"{self.steps} steps",
            batch=BatchSettings(sequences=self.batch),
            schedule=settings.schedule,
        )
        self.rate = Course(whole, context=1).rate
        """Factor on the highest learning rate in a step (from 0)."""


@dataclass
class TuningProgress:
    """All that a restart needs to know beside tensors."""

    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens read."""
    best: float | None = None
    """The best figure of the held-out examples so far."""
    best_loss: float = math.inf
    """What the weights that reached it lost; of equal figures the smaller loss is better."""
    best_step: int = 0
    """Steps done when it was reached."""


class TuningState:
    """Of the parameters of `modules` that have `requires_grad`; what is frozen is in no checkpoint."""

    def __init__(
        self,
        modules: nn.Module,
        settings: TuningSettings,
        size: int,
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        self.trained = {name: one for name, one in modules.named_parameters() if one.requires_grad}
        if not self.trained:
            raise DaybreakError("nothing is left to be trained: all parameters are frozen")
        self.course = TuningCourse(settings, size)
        self.progress = TuningProgress()
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, settings.checkpoints, tell)
        self._best = Checkpoints(folder / BEST, CheckpointSettings(every=1, keep=2, background=False), tell)
        self._settings = settings.optimizer
        straighten(self.trained.values())
        self._optimizer = _optimizer(list(self.trained.values()), settings.optimizer)
        self._saved: int | None = None
        self.data = ""
        """The fingerprint of the examples."""

    @property
    def step(self) -> int:
        return self.progress.step

    def rate(self, step: int) -> float:
        """The learning rate in `step` (from 0)."""
        return self.course.rate(step) * self._settings.lr

    @torch.no_grad()
    def move(self, step: int, norm: float) -> None:
        """The optimizer's step with the gradients that the parameters hold, of this norm; then they go."""
        clip = self._settings.clip
        if clip is not None:
            gradients = [one.grad for one in self.trained.values() if one.grad is not None]
            torch._foreach_mul_(gradients, min(1.0, clip / (norm + 1e-6)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress.step += 1

    def save(self) -> None:
        """A checkpoint of this moment, unless there is one."""
        if self._saved == self.step:
            return
        self._saved = self.step
        numbers = {"progress": dataclasses.asdict(self.progress), "data": self.data}
        self.checkpoints.save(self.step, self._tensors(), numbers)

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is one."""
        step = self.checkpoints.newest()
        if step is None:
            return
        numbers = self.checkpoints.numbers(step)
        if numbers["data"] != self.data:
            raise DaybreakError(
                "the examples are not those that this run was started with, so it cannot go on from where "
                "it was; start a new run with --out"
            )
        self.checkpoints.load(step, self._tensors())
        self.progress = TuningProgress(**numbers["progress"])
        self._saved = step

    def is_best(self, figure: float, loss: float, higher: bool) -> bool:
        """Is this better than all before? Then it is the best from now on."""
        progress, sign = self.progress, 1 if higher else -1
        now, before = (sign * figure, -loss), (sign * (progress.best or 0.0), -progress.best_loss)
        if not math.isfinite(figure) or (progress.best is not None and now <= before):
            return False
        progress.best, progress.best_loss, progress.best_step = figure, loss, self.step
        return True

    def keep_best(self) -> None:
        """Keep the weights of this moment. The ones before stay until the next time, for whoever is killed
        before the checkpoint that knows of these is written."""
        self._best.save(self.step, {"model": self._weights()}, {})
        self._best.wait()

    def take_best(self) -> bool:
        """The weights become the best ones; False where they are, or where none were kept."""
        step = self.progress.best_step
        if self.progress.best is None or step == self.step or step not in self._best.steps():
            return False
        self._best.load(step, {"model": self._weights()})
        return True

    def _weights(self) -> dict[str, Tensor]:
        return {name: one.detach() for name, one in self.trained.items()}

    def _tensors(self) -> dict[str, Any]:
        """The tensors of training themselves, which loading fills in place."""
        complete(self._optimizer)
        states = {name: self._optimizer.state[one] for name, one in self.trained.items()}
        return {"model": self._weights(), "optimizer": states}


def _optimizer(parameters: list[nn.Parameter], settings: TuningOptimizer) -> Optimizer:
    """Matrices and embeddings decay, norms and biases do not."""
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "rmsprop":
        return RMSprop(groups, lr=settings.lr, eps=settings.eps)
    betas = (settings.beta1, settings.beta2)
    return AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)
