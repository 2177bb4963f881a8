"""Where a run of PPO stands: weights, optimizers, the moving average, progress, and the checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from daybreak.align.ppo_settings import PpoOptimizer, PpoSettings
from daybreak.errors import DaybreakError
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.optimizers import straighten
from daybreak.train.run_folder import CHECKPOINTS
from daybreak.train.state import complete

SLOW_START = 9
"""The average's decay begins small, (1 + n) / (10 + n) after n iterations, for a constant one would keep the
first weights in it for long (TensorFlow's ExponentialMovingAverage, num_updates)."""


@dataclass
class PpoProgress:
    """All that a restart needs to know beside tensors."""

    iteration: int = 0
    """Iterations done."""
    beta: float = 0.0
    """The present price of a nat."""
    tokens: int = 0
    """Of all answers."""
    mixed: int = 0
    """Sequences of pretraining text that were read."""


class PpoState:
    """Of the parameters of `modules`, which are "policy" and "critic", that have `requires_grad`."""

    def __init__(
        self, modules: nn.ModuleDict, settings: PpoSettings, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.progress = PpoProgress(beta=settings.kl.beta)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, settings.checkpoints, tell)
        self.data = ""
        """The fingerprint of what the run reads."""
        self._settings = settings.optimizer
        self._parts = {name: Part(module, settings.optimizer) for name, module in modules.items()}
        self.policy, self.critic = self._parts["policy"], self._parts["critic"]
        self.average: dict[str, Tensor] | None = None
        if settings.optimizer.ema is not None:
            self.average = {name: one.detach().clone() for name, one in self.policy.trained.items()}
        self._saved: int | None = None

    def rate(self) -> float:
        """Factor on the learning rates in the iteration that comes."""
        warmup, first = self._settings.warmup, self._settings.warmup_from
        return first + (1 - first) * min(1.0, self.progress.iteration / warmup) if warmup else 1.0

    def move(self, norms: Mapping[str, float]) -> None:
        """The optimizers' steps with the gradients that the parameters hold, of these norms."""
        rates = {"policy": self._settings.lr, "critic": self._settings.value_lr}
        for name, part in self._parts.items():
            part.move(rates[name] * self.rate(), norms[name], self._settings.clip)

    def norms(self) -> dict[str, float]:
        """Of the gradients of policy and critic."""
        return {name: part.norm() for name, part in self._parts.items()}

    @torch.no_grad()
    def advance(self) -> None:
        """An iteration is done."""
        self.progress.iteration += 1
        if self.average is None or self._settings.ema is None:
            return
        seen = self.progress.iteration
        decay = min(self._settings.ema, seen / (SLOW_START + seen))
        for name, average in self.average.items():
            average.lerp_(self.policy.trained[name].detach(), 1 - decay)

    def save(self, watch: Any) -> None:
        """A checkpoint of this moment, unless there is one; `watch` is what the watcher remembers, for
        JSON."""
        if self._saved == self.progress.iteration:
            return
        self._saved = self.progress.iteration
        numbers = {"progress": dataclasses.asdict(self.progress), "watch": watch, "data": self.data}
        self.checkpoints.save(self.progress.iteration, self._tensors(), numbers)

    def resume(self) -> Any:
        """Go on from the newest checkpoint that is whole; returns what the watcher remembered then, or None
        where there is no checkpoint."""
        step = self.checkpoints.newest()
        if step is None:
            return None
        numbers = self.checkpoints.numbers(step)
        if numbers["data"] != self.data:
            raise DaybreakError(
                "the prompts, the text to mix in, the reward model or the start are not those that this run "
                "was begun with, so it cannot go on from where it was; start a new run with --out"
            )
        self.checkpoints.load(step, self._tensors())
        self.progress = PpoProgress(**numbers["progress"])
        self._saved = step
        return numbers["watch"]

    def _tensors(self) -> dict[str, Any]:
        """The tensors of training themselves, which loading fills in place."""
        tree: dict[str, Any] = {name: part.tensors() for name, part in self._parts.items()}
        return tree if self.average is None else {**tree, "average": self.average}


class Part:
    """A model that is trained, with its optimizer."""

    def __init__(self, module: nn.Module, settings: PpoOptimizer) -> None:
        self.trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
        straighten(self.trained.values())
        self._optimizer = AdamW(
            list(self.trained.values()),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=0.0,
            fused=True,
        )

    def norm(self) -> float:
        gradients = [one.grad for one in self.trained.values() if one.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    @torch.no_grad()
    def move(self, lr: float, norm: float, clip: float | None) -> None:
        if clip is not None:
            gradients = [one.grad for one in self.trained.values() if one.grad is not None]
            torch._foreach_mul_(gradients, min(1.0, clip / (norm + 1e-6)))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()

    def tensors(self) -> dict[str, Any]:
        complete(self._optimizer)
        weights = {name: one.detach() for name, one in self.trained.items()}
        return {
            "model": weights,
            "optimizer": {name: self._optimizer.state[one] for name, one in self.trained.items()},
        }
