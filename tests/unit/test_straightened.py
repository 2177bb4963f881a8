"""Weights that a checkpoint stores turned or fused are trained as all others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torch.optim import AdamW

import daybreak
from daybreak.align.ppo_settings import PpoOptimizer
from daybreak.align.ppo_state import Part
from daybreak.model.decoder import Decoder
from daybreak.train.optimizers import optimizers
from daybreak.train.settings import OptimizerSettings
from daybreak.train.tuning_settings import TuningOptimizer, TuningSettings
from daybreak.train.tuning_state import TuningState
from tests.unit.tiny_training import model_of

RATE, EPS = 1e-2, 1e-4  # an epsilon above the rounding of gradients that are 0
Step = Callable[[], None]


def pretraining(decoder: nn.Module, folder: Path) -> Step:
    (own,) = optimizers(cast(Decoder, decoder), OptimizerSettings(lr=RATE, weight_decay=0.0, eps=EPS))

    def step() -> None:
        own.step()
        own.zero_grad()

    return step


def tuning(decoder: nn.Module, folder: Path) -> Step:
    given = TuningSettings(optimizer=TuningOptimizer(lr=RATE, clip=None, eps=EPS), steps=3)
    state = TuningState(decoder, given, 96, folder, print)
    state.rate = lambda step: RATE  # type: ignore[method-assign]
    return lambda: state.move(0, 1.0)


def policy(decoder: nn.Module, folder: Path) -> Step:
    part = Part(decoder, PpoOptimizer(lr=RATE, eps=EPS))
    return lambda: part.move(RATE, 1.0, None)


def plain(parameters: Sequence[nn.Parameter]) -> Step:
    own = AdamW(parameters, lr=RATE, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0, fused=False, foreach=False)

    def step() -> None:
        own.step()
        own.zero_grad()

    return step


@pytest.mark.parametrize("kind", [pretraining, tuning, policy])
@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_loaded_weights_move_as_a_plain_optimizer_moves_them(
    kind: Callable[[nn.Module, Path], Step], family: str, tmp_path: Path
) -> None:
    model_of(family, inner=96).save(tmp_path / "model")
    tokens = torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for number in range(2):
        decoder = daybreak.load(tmp_path / "model").decoder
        turned = [one for one in decoder.parameters() if not one.is_contiguous()]
        assert turned or family != "gpt2"
        step = plain(list(decoder.parameters())) if number else kind(decoder, tmp_path / "run")
        for _ in range(3):
            logits = decoder.logits(tokens[:, :-1])
            nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            step()
        found.append({name: one.detach() for name, one in decoder.named_parameters()})
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], rtol=1e-3, atol=2e-4)
