"""CTranslate2's folders out of ordinary ones, by its own converter, with what random weights lack.

The converter wants a tokenizer: here one whose tokens are the numbers. For GPT-NeoX it wants two names of
transformers 4, which are given back: `rotary_pct` in the config, and `embed_out` for the head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctranslate2.converters import TransformersConverter


class Numbers:
    """As much of a tokenizer as the converter asks for."""

    bos_token = eos_token = unk_token = "0"

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(self._vocabulary)}


class Converter(TransformersConverter):
    def __init__(self, folder: Path, vocabulary: int) -> None:
        super().__init__(str(folder))
        self._tokens = Numbers(vocabulary)

    def load_tokenizer(self, kind: Any, path: str, **settings: Any) -> Numbers:
        return self._tokens

    def load_model(self, kind: Any, path: str, **settings: Any) -> Any:
        model = super().load_model(kind, path, **settings)
        rotary = getattr(model.config, "rope_parameters", None) or {}
        if "partial_rotary_factor" in rotary and not hasattr(model.config, "rotary_pct"):
            model.config.rotary_pct = rotary["partial_rotary_factor"]
        if hasattr(model, "gpt_neox") and not hasattr(model, "embed_out"):
            model.embed_out = model.lm_head
        return model


def convert(folder: Path, destination: Path, format: str, vocabulary: int) -> None:
    Converter(folder, vocabulary).convert(str(destination), quantization=format)
