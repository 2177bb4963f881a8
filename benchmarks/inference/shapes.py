"""The models that are measured: random weights of published shapes, and one real model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One model, the same weights for every engine."""

    name: str
    title: str
    family: str
    size: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Architecture`, for a shape that was not published."""
    cost: float = 1
    """How much longer everything takes than for GPT-2 small."""
    gguf: str | None = None
    """What `daybreak.load` takes for a real GGUF file; llama.cpp and daybreak read it, the others a folder
    made of it."""


def _small_gpt_j() -> Mapping[str, Any]:
    """GPT-J as small as GPT-2: a quarter of each head is rotated, as in the 6B model."""
    from daybreak.architecture import Rotary

    positions = Rotary(16, "neighbours")
    return {"layers": 12, "width": 768, "heads": 12, "inner": 3072, "positions": positions}


def shapes() -> dict[str, Shape]:
    """By name, in the order in which they are measured."""
    found = (
        Shape("gpt2", "GPT-2 small", "gpt2", "gpt2"),
        Shape("opt-125m", "OPT-125m", "opt", "opt-125m"),
        Shape("gpt-j-small", "GPT-J, scaled down to 12 layers of 768", "gpt_j", None, _small_gpt_j()),
        Shape("smollm2", "SmolLM2-135M, the real GGUF file (Q4_1)", "llama", gguf="smollm2"),
        Shape("pythia-410m", "Pythia-410m", "gpt_neox", "pythia-410m", cost=3),
        Shape("bloom-560m", "BLOOM-560m", "bloom", "bloom-560m", cost=4),
    )
    return {shape.name: shape for shape in found}


def save(shape: Shape, folder: Path) -> tuple[int, int]:
    """Write an ordinary folder. Returns the size of the vocabulary, and how many weights a token needs: all
    but the tables of which it reads a row."""
    import daybreak
    from daybreak.parameters import breakdown

    if shape.gguf is not None:
        model = daybreak.load(shape.gguf)
    else:
        model = daybreak.create(shape.family, shape.size, seed=1, **shape.changes)
    model.save(folder)
    parts = breakdown(model.architecture)
    return model.architecture.vocabulary, parts.non_embedding + (parts.head or parts.embedding)
