"""Tiny models with blanks and a byte-pair tokenizer that spells them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from torch import Tensor

import daybreak
from daybreak import LanguageModel, families
from daybreak.architecture import Blanks, Rotary
from daybreak.text.tokenizer import WHOLE, Tokenizer
from daybreak.text.train_tokenizer import train_tokenizer

FAMILIES = [name for name in families.NAMES if families.by_name(name).base.blanks is not None]
TEXT = (
    "The quick brown fox jumps over the lazy dog. 清华大学训练的模型 def add(a, b):\n    return a + b\n" * 20
)
SHAPE: dict[str, Any] = {"context": 64, "layers": 2, "width": 32, "heads": 4, "inner": 48}


@cache
def tokenizer_of(family: str, drops: bool = True, framed: bool = True) -> Tokenizer:
    """`drops`: masks take the white space before them, as the published ones do; `framed`: with [CLS]."""
    page = families.by_name(family)
    trained = train_tokenizer([TEXT], 290)
    library = Library.from_str(trained.files[WHOLE].decode())
    names = [*page.blank_tokens.values(), *(["[CLS]"] if framed else [])]
    library.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False, lstrip=drops and name.endswith("MASK]"))
            for name in names
        ]
    )
    return Tokenizer(library, eos="<|endoftext|>")


@cache
def model_of(family: str, drops: bool = True, framed: bool = True, seed: int = 0) -> LanguageModel:
    """Weights are large enough that its texts vary."""
    page, tokenizer = families.by_name(family), tokenizer_of(family, drops, framed)
    ids: dict[str, Any] = {role: tokenizer.special_id(text) for role, text in page.blank_tokens.items()}
    assert page.base.blanks is not None
    changes: dict[str, Any] = {"blanks": Blanks(**ids, runs_on=page.base.blanks.runs_on)}
    if isinstance(page.base.positions, Rotary) and page.base.positions.blocks:
        changes["positions"] = Rotary(4, blocks=True, half_frequencies=True)
    model = daybreak.create(family, vocabulary=304, **SHAPE, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.4, generator=generator)
    model.tokenizer = tokenizer
    return model


class Script:
    """Makes a model write given tokens: `say(monkeypatch, Script(tokens))`."""

    def __init__(self, tokens: Sequence[int], vocabulary: int = 304) -> None:
        self.tokens, self.vocabulary = list(tokens), vocabulary

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.vocabulary)
        logits[..., self.tokens.pop(0)] = 9.0
        return logits
