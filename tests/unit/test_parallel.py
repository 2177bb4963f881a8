"""Every design on two and four processes, cut in every way: the loss of every step is that of one process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from daybreak import families
from daybreak.architecture import Architecture, Blanks, Rotary
from daybreak.compare.redraw import redraw
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch, Objective, token_losses
from daybreak.objectives.blank_infilling import BlankInfilling
from daybreak.objectives.causal import Causal
from daybreak.train.parallel import clip, gradient_norm, parallelise
from daybreak.train.settings import ParallelSettings
from daybreak.train.step import share
from daybreak.train.world import World
from tests.unit.processes import together

STEPS = 50
SEQUENCES = 4
CONTEXT = 16
SHAPE: dict[str, Any] = {"vocabulary": 97, "context": CONTEXT, "layers": 1, "width": 32, "heads": 4}
"""A vocabulary that no number of processes divides."""
MARKS = Blanks(start=91, end=95, mask=88, rest=93, sentence=90)
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("gpt", {}),
    "gpt2": ("gpt2", {"layers": 2}),
    "gpt3": ("gpt3", {"layers": 2, "windows": (None, 5)}),
    "gpt_neo": ("gpt_neo", {"layers": 2, "windows": (None, 5)}),
    "gpt_j": ("gpt_j", {"positions": Rotary(4, "neighbours")}),
    "glm": ("glm", {"blanks": MARKS}),
    "gpt_neox": ("gpt_neox", {"positions": Rotary(4, "halves")}),
    "opt": ("opt", {}),
    "opt, narrow embedding": ("opt", {"embedding_width": 24, "block": "post", "final_norm": False}),
    "bloom": ("bloom", {"layers": 2}),
    "glm_130b": ("glm_130b", {"blanks": dataclasses.replace(MARKS, runs_on=True)}),
    "chatglm": ("chatglm", {"blanks": MARKS, "positions": Rotary(4, "halves", blocks=True)}),
    "llama": ("llama", {"positions": Rotary(8, "halves"), "key_heads": 2}),
}
LAYOUTS = {
    "FSDP 2": ParallelSettings(),
    "TP 2": ParallelSettings(tensor=2),
    "FSDP 4": ParallelSettings(),
    "HSDP 2 x 2": ParallelSettings(replicas=2),
    "FSDP 2 x TP 2": ParallelSettings(tensor=2),
}
EVERY_LAYOUT = "EVERY_LAYOUT" in os.environ
"""All designs in all layouts takes three times as long; else each has tensor parallelism once."""


def layouts_of(number: int, size: int) -> list[str]:
    """The layouts on `size` processes in which the design of that number is trained."""
    both = "FSDP 2 x TP 2"
    own = ["FSDP 2", "TP 2"] if size == 2 else [both, "FSDP 4", both, "HSDP 2 x 2"]
    return list(dict.fromkeys(own)) if EVERY_LAYOUT else [own[number % len(own)]]


def architecture(name: str) -> Architecture:
    family, changes = DESIGNS[name]
    base = families.by_name(family).base
    shape = {**SHAPE, **({"key_heads": None} if base.key_heads else {})}
    if isinstance(base.positions, Rotary) and "positions" not in changes:
        changes = {**changes, "positions": dataclasses.replace(base.positions, width=8)}
    return families.by_name(family).architecture(**{**shape, **changes})


def decoder_of(name: str) -> Decoder:
    decoder = Decoder(architecture(name))
    redraw(decoder, 0)
    # A unit at the kink of ReLU falls to either side by a rounding, and AdamW makes a step of the difference:
    # one process whose weights are moved by 1e-6 is 1e-4 off after 50 steps. In float64 none stands so near.
    return decoder.double() if decoder.architecture.activation == "relu" else decoder


def batch_of(name: str, numbers: Sequence[int]) -> Batch:
    """What the sequences of these numbers ask of the design."""
    blanks = architecture(name).blanks
    objective: Objective = Causal() if blanks is None else BlankInfilling(blanks)
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    # The smaller of two: some tokens are more frequent than others, so that there is something to learn.
    drawn = [torch.randint(0, 86, (2, CONTEXT + 1), generator=own).amin(0) for own in generators]
    return objective.batch(torch.stack(drawn), numbers)


def train(name: str, world: World, steps: int = STEPS, recompute: bool = False) -> list[float]:
    """The losses of the run's first steps."""
    decoder = decoder_of(name)
    parallelise(decoder, world, recompute)
    optimizer = AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    losses = []
    for step in range(steps):
        batch = batch_of(name, share(SEQUENCES, step * SEQUENCES, world))
        count = int(world.sum((batch.targets != UNSCORED).sum()))
        loss = token_losses(decoder, batch).sum() / count
        loss.backward()  # type: ignore[no-untyped-call]
        clip(decoder, 1.0, gradient_norm(decoder, world))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(world.sum(loss)))
    return losses


def curves(size: int) -> dict[tuple[str, str], list[float]]:
    worlds = {label: World.arranged(LAYOUTS[label], torch.device("cpu")) for label in labels(size)}
    return {
        (name, label): train(name, worlds[label])
        for number, name in enumerate(DESIGNS)
        for label in layouts_of(number, size)
    }


def labels(size: int) -> list[str]:
    return list(dict.fromkeys(label for number in range(len(DESIGNS)) for label in layouts_of(number, size)))


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    return {name: train(name, World.alone(torch.device("cpu"))) for name in DESIGNS}


def furthest(found: list[float], expected: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


def test_every_family_and_every_layout_is_tried() -> None:
    assert {family for family, _ in DESIGNS.values()} == set(families.NAMES)
    assert {*labels(2), *labels(4)} == set(LAYOUTS)


def test_one_process_learns(alone: dict[str, list[float]]) -> None:
    for name, losses in alone.items():
        assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), name


@pytest.mark.parametrize("size", [2, 4])
def test_losses_are_those_of_one_process(size: int, alone: dict[str, list[float]]) -> None:
    for rank, found in enumerate(together(size, curves, size, timeout=900)):
        for (name, label), losses in found.items():
            distance = furthest(losses, alone[name])
            print(f"{name}, {label}, rank {rank}: {distance:.1e}")
            assert distance < 1e-5, (name, label, rank)
