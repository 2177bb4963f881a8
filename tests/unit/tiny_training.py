"""A training small enough for tests of its checkpoints: two optimizers, a schedule and a moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer

import daybreak
from daybreak.language_model import LanguageModel

CONTEXT = 12
VOCABULARY = 61  # not a multiple of any number of ranks
SHAPE = {"layers": 2, "width": 24, "heads": 4, "inner": 40, "vocabulary": VOCABULARY, "context": CONTEXT}


def model_of(family: str = "gpt2", seed: int = 0, **changes: Any) -> LanguageModel:
    return daybreak.create(family, seed=seed, **{**SHAPE, **changes})


@dataclass
class Training:
    """A model with what moves its weights; `step` is the whole loop."""

    model: LanguageModel
    optimizers: list[Optimizer]
    ema: dict[str, Tensor]
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, model: LanguageModel, dtype: torch.dtype = torch.float32, muon: bool = True) -> Training:
        """Muon, where it is asked for, has the matrices of the blocks."""
        # Torch's fused kernel takes plain tensors or DTensors, not both.
        fused = len({type(one.data) for one in model.decoder.parameters()}) == 1
        named = dict(model.decoder.named_parameters())
        matrices = [
            one for name, one in named.items() if muon and name.startswith("blocks") and one.ndim == 2
        ]
        others = [one for one in named.values() if not any(one is matrix for matrix in matrices)]
        groups = [
            {"params": [one for one in others if one.ndim == 2], "weight_decay": 0.1},
            {"params": [one for one in others if one.ndim != 2], "weight_decay": 0.0},
        ]
        optimizers: list[Optimizer] = [AdamW(groups, betas=(0.9, 0.95), fused=fused)]
        if muon:
            optimizers.append(Muon(matrices, momentum=0.9))
        return cls(model, optimizers, {name: one.detach().clone() for name, one in named.items()}, dtype)

    def step(self, number: int) -> float:
        """Train on the batch of that number; the loss before it."""
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, VOCABULARY, (2, CONTEXT + 1), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.model.decoder.logits(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
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
