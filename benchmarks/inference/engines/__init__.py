"""The engines, all asked in the same way: prompts of token ids in, greedy tokens out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

Prompts = Sequence[Sequence[int]]
"""Of equal length."""


class Engine(Protocol):
    """One engine in a process of its own, whose end closes it. Creating it imports what it needs; nothing is
    loaded yet."""

    def load(self, path: str) -> None:
        """The weights, from what `prepare` wrote for this configuration."""

    def generate(self, prompts: Prompts, new: int) -> list[list[int]]:
        """`new` greedy tokens after each prompt, all prompts in one batch, with end-of-text ignored."""


MODULES = {
    "daybreak": ("daybreak", "Daybreak"),
    "transformers": ("transformers", "Transformers"),
    "CTranslate2": ("ctranslate2", "CTranslate2"),
    "llama.cpp": ("llama_cpp", "LlamaCpp"),
}


def engine(name: str, format: str, threads: int) -> Engine:
    """An engine by its name in `configurations`. Only its own library is imported."""
    module, kind = MODULES[name]
    made: Engine = getattr(importlib.import_module(f"benchmarks.inference.engines.{module}"), kind)(
        format, threads
    )
    return made
