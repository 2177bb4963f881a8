"""daybreak, through its public face alone."""

from __future__ import annotations

from typing import Any

import torch

import daybreak
from benchmarks.inference.engines import Prompts

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {},  # a folder with such weights
    "4bit": {},
}


class Daybreak:
    def __init__(self, format: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._settings = SETTINGS[format]

    def load(self, path: str) -> None:
        self._model = daybreak.load(path, **self._settings)

    def generate(self, prompts: Prompts, new: int) -> list[list[int]]:
        texts = [list(prompt) for prompt in prompts]
        # Without guesses: random weights repeat themselves, and texts of theirs would be written too fast.
        engine = self._model.engine(batch_size=len(texts), guesses=0)
        results = self._model.generate(
            texts, max_new_tokens=new, temperature=0, ignore_eos=True, engine=engine
        )
        return [list(result.tokens) for result in results]
