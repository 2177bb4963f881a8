"""Small models that speak bytes, for what is done with models that write."""

from __future__ import annotations

from typing import Any

import daybreak
from daybreak.language_model import LanguageModel
from tests.unit.tiny_run import byte_tokenizer


def speaking(family: str = "gpt2", seed: int = 0, **changes: Any) -> LanguageModel:
    """A model with a token for every byte, and one behind every text."""
    shape = {"vocabulary": 257, "context": 96, "layers": 2, "width": 32, "heads": 2, "inner": 64}
    model = daybreak.create(family, seed=seed, **{**shape, **changes})
    model.tokenizer = byte_tokenizer()
    return model
