"""A training small enough for tests of its checkpoints: optimizers, a schedule and a moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

import daybreak
from daybreak.language_model import LanguageModel
from daybreak.train.optimizers import optimizers
from daybreak.train.parallel import parallelise
from daybreak.train.settings import OptimizerSettings
from daybreak.train.world import World

CONTEXT = 12
VOCABULARY = 61  # not a multiple of any number of ranks
SHAPE = {"layers": 2, "width": 24, "heads": 4, "inner": 40, "vocabulary": VOCABULARY, "context": CONTEXT}
ALONE = World.alone(torch.device("cpu"))


def model_of(family: str = "gpt2", seed: int = 0, **changes: Any) -> LanguageModel:
    return daybreak.create(family, seed=seed, **{**SHAPE, **changes})


@dataclass
class Training:
    """A model with what moves its weights; `step` is the whole loop."""

    model: LanguageModel
    optimizers: list[Optimizer]
    ema: dict[str, Tensor]
    world: World
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        dtype: torch.dtype = torch.float32,
        muon: bool = True,
        world: World = ALONE,
    ) -> Training:
        """The model is cut as `world` says, in place."""
        parallelise(model.decoder, world)
        chosen = optimizers(model.decoder, OptimizerSettings(name="muon" if muon else "adamw"))
        ema = {name: one.detach().clone() for name, one in model.decoder.named_parameters()}
        return cls(model, chosen, ema, world, dtype)

    def step(self, number: int) -> float:
        """Train on the batch of that number, which all processes read; the loss before it."""
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, VOCABULARY, (2, CONTEXT + 1), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.model.decoder.logits(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        (loss / self.world.data_ranks).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + number)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, one in self.model.decoder.named_parameters():
                self.ema[name].lerp_(one.detach(), 0.1)
        return loss.item()

    def steps(self, first: int, last: int) -> list[float]:
        return [self.step(number) for number in range(first, last)]
