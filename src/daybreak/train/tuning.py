"""Tuning a trained model: the one loop behind fine-tuning, reward models and learning from preferences.

What is learned is a `Job`: it has the examples, and says what a few of them cost. A new one needs `loss` and
`save`, and overrides the rest where the default is not what it wants:

    class Mine(Job[Example]):
        def loss(self, part):                       # examples that are read together, at most batch.micro
            losses = ...                            # [predictions], with a gradient
            return Scored(losses.sum(), count=len(losses), tokens=part_tokens, figures={"accuracy": right})

        def save(self, folder):                     # what a user leaves with
            self.model.save(folder)

    outcome = tune(Mine(modules, examples, held_out), settings, folder, screen)  # of tuning_run

`tune` is the whole run: it begins in the run folder or goes on there, bit for bit as if it had never been
interrupted; it leaves metrics.jsonl, logbook.md, run.json, settings.yaml, `checkpoints/`, `best/` and the
model in `model/`. A step's gradient is that of the mean over everything its examples predict (the sum of the
losses divided by the sum of the counts), however the examples are divided. Everything random is a function of
the seed and the step's number: the order of the examples, and what is drawn while a loss is computed.

A job's modules are trained as far as their parameters have `requires_grad`; a frozen reference model is kept
outside of them, or frozen.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from daybreak.data.order import draw, permuted
from daybreak.errors import DaybreakError
from daybreak.model.heads import Scorer
from daybreak.train.precision import products
from daybreak.train.run_status import Ending
from daybreak.train.stop import Stop
from daybreak.train.tuning_records import TuningRecords
from daybreak.train.tuning_settings import TuningSettings
from daybreak.train.tuning_state import TuningState

E = TypeVar("E")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Scored:
    """What a part of a step costs."""

    loss: Tensor
    """The sum of the losses of everything that is predicted: a scalar, float32."""
    count: int
    """How many they are: tokens, pairs, rows."""
    tokens: int
    """How many tokens were read; the speed is told in them."""
    figures: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Further sums over the same predictions, of which means are reported: how many were right."""


class Job(ABC, Generic[E]):
    """What is to be learned, and from what."""

    figure: str = "loss"
    """What of `score` says which weights are best."""
    higher: bool = False
    """Is more of it better?"""
    dtype: torch.dtype = torch.float32
    """Of the matrix products; set by `tune`."""

    def __init__(self, modules: nn.Module, examples: Sequence[E], held_out: Sequence[E] = ()) -> None:
        """`modules` are trained; the loop puts them into training mode and out of it, and on the device."""
        self.modules, self.examples, self.held_out = modules, examples, held_out

    @abstractmethod
    def loss(self, part: Any) -> Scored:
        """What a part of a step costs, on the device of the modules; `part` is what `parts` gives."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what a user leaves with: an ordinary model folder. Not asked where an adapter is all that is
        left (see `daybreak.train.tuning_result`)."""

    def parts(self, examples: Sequence[E], micro: int) -> Iterable[Any]:
        """A step's examples in parts that are read at once: here lists of at most `micro` of them."""
        return (examples[first : first + micro] for first in range(0, len(examples), micro))

    def fresh(self) -> Iterable[Tensor]:
        """What begins as noise, and is trained even where all else has adapters: the heads of scorers."""
        return [m.head.weight for m in self.modules.modules() if isinstance(m, Scorer)]

    def score(self, micro: int) -> dict[str, float]:
        """Figures of the held-out examples: the means of the loss and of what else `loss` tells."""
        parts = [self.loss(part) for part in self.parts(self.held_out, micro)]
        return means(parts)

    def about(self) -> dict[str, str]:
        """Lines for the logbook: the model, the data."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What `daybreak runs` shows beside: family, size, parameters."""
        return {}

    def fingerprint(self) -> str:
        """Of the examples: a run goes on with the same ones alone."""
        digest = blake2b(digest_size=16)
        for one in self.examples:
            digest.update(repr(one).encode())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.modules.parameters()).device


def means(parts: Sequence[Scored]) -> dict[str, float]:
    """Loss and figures per prediction."""
    count = max(1, sum(part.count for part in parts))
    sums = {"loss": sum(float(part.loss.detach()) for part in parts)}
    for part in parts:
        for name, value in part.figures.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {name: value / count for name, value in sums.items()}


@dataclass
class Tuning(Generic[E]):
    """A run in progress; made by `daybreak.train.tuning_run`."""

    job: Job[E]
    settings: TuningSettings
    state: TuningState
    records: TuningRecords

    def train(self, stop: Stop) -> Ending:
        """Go on until all steps are done or `stop` is asked for; a checkpoint is left in either case.

        Raises `DaybreakError` for a loss or a gradient that is not finite: before it has moved anything.
        """
        state, every, course = self.state, self._evaluated_every(), self.state.course
        for step in range(state.step, course.steps):
            if stop.asked:
                self._save()
                state.checkpoints.wait()
                return "stopped"
            began = time.perf_counter()
            examples = [self.job.examples[number] for number in self.numbers(step)]
            with self._drawing(step):
                parts = self._gradient(examples)
            norm = self._norm()
            self._check(step, parts, norm)
            state.move(step, norm)
            seconds, tokens = time.perf_counter() - began, sum(part.tokens for part in parts)
            total = state.progress.tokens = state.progress.tokens + tokens
            self.records.step(step + 1, means(parts), norm, state.rate(step), tokens, seconds, total)
            if self.job.held_out and ((step + 1) % every == 0 or step + 1 == course.steps):
                self.evaluate()
            if (step + 1) % self.settings.checkpoints.every == 0 and step + 1 < course.steps:
                self._save()
        self._save()
        state.checkpoints.wait()
        return "finished"

    def numbers(self, step: int) -> list[int]:
        """Which examples a step reads: each epoch is a permutation of all of them."""
        course, size = self.state.course, len(self.job.examples)
        places = range(step * course.batch, min((step + 1) * course.batch, course.examples))
        return [
            permuted(place % size, size, draw("tuning", self.settings.seed, place // size))
            for place in places
        ]

    def evaluate(self) -> dict[str, float]:
        """Score the held-out examples; the best weights so far are kept, and a checkpoint with them."""
        scores = self.score()
        self.records.scores(self.state.step, scores)
        figure, loss = scores[self.job.figure], scores.get("loss", math.inf)
        if self.state.is_best(figure, loss, self.job.higher):
            self.state.keep_best()
            self._save()
        return scores

    @torch.no_grad()
    def score(self) -> dict[str, float]:
        """Figures of the held-out examples with the weights as they are."""
        self.job.modules.eval()
        with self._drawing(-1), products(self.job.dtype, self.job.device.type):
            scores = self.job.score(self.settings.batch.micro)
        self.job.modules.train()
        return scores

    def _gradient(self, examples: Sequence[E]) -> list[Scored]:
        """The gradients of the sums are added up, and divided once all counts are known."""
        parts = []
        for part in self.job.parts(examples, self.settings.batch.micro):
            with products(self.job.dtype, self.job.device.type):
                scored = self.job.loss(part)
            if scored.loss.requires_grad:  # not where a part predicts nothing at all
                scored.loss.backward()  # type: ignore[no-untyped-call]
            parts.append(_without_graph(scored))
        gradients = [one.grad for one in self.state.trained.values() if one.grad is not None]
        torch._foreach_mul_(gradients, 1 / max(1, sum(part.count for part in parts)))
        return parts

    def _norm(self) -> float:
        gradients = [one.grad for one in self.state.trained.values() if one.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _check(self, step: int, parts: Sequence[Scored], norm: float) -> None:
        loss = means(parts)["loss"]
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                numbers = ", ".join(str(number + 1) for number in self.numbers(step)[:8])
                raise DaybreakError(
                    f"the {name} of step {step + 1} is {value}, and the step was not taken; it read the "
                    f"examples {numbers}... Look at them, lower optimizer.lr, or use dtype float32"
                )

    def _save(self) -> None:
        self.records.saving(self.state.step)
        self.state.save()

    def _drawing(self, step: int) -> AbstractContextManager[None]:
        return seeded(draw("drawn", self.settings.seed, step), self.job.device)

    def _evaluated_every(self) -> int:
        course = self.state.course
        return self.settings.evaluation.every or max(1, len(self.job.examples) // course.batch)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, what torch draws depends on `seed` alone; afterwards its generators are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


def _without_graph(scored: Scored) -> Scored:
    figures = {
        name: value.detach() if isinstance(value, Tensor) else value for name, value in scored.figures.items()
    }
    return Scored(scored.loss.detach(), scored.count, scored.tokens, figures)
