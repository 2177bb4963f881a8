"""Greedy text is the reference's, token for token: every family and shape, alone and in padded batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

import daybreak
from daybreak import LanguageModel, families
from daybreak.compare import reference
from daybreak.engine.generate import generate
from daybreak.families.trials import REFERENCES, trials

NAMES = [name for name in families.NAMES if trials(name) and name not in REFERENCES]
CASES = [(name, label) for name in NAMES for label in trials(name)]
LENGTHS = (19, 1, 14)
NEW = 10
BLIND_TO_PADDING = ("openai-gpt",)
"""Model types for which the reference itself takes padding for text when it counts positions."""


@cache
def pair(name: str, label: str) -> tuple[Any, LanguageModel]:
    """The same weights on both sides, matrices enlarged: small ones write one token over and over."""
    theirs: Any = reference.build(families.by_name(name), trials(name)[label], 1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    with TemporaryDirectory() as folder:
        reference.save(theirs, Path(folder))
        return theirs, daybreak.load(folder)


def prompts_for(model: LanguageModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    vocabulary = model.architecture.vocabulary
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]


def continued(theirs: Any, tokens: Tensor, mask: Tensor, **settings: Any) -> list[list[int]]:
    settings = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, **settings}
    with torch.no_grad():
        found = theirs.generate(tokens, attention_mask=mask, **settings)
    return [row[tokens.shape[1] :].tolist() for row in found]


def one_by_one(theirs: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    rows = [torch.tensor([prompt]) for prompt in prompts]
    return [continued(theirs, row, torch.ones_like(row), **settings)[0] for row in rows]


def padded(theirs: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return continued(theirs, tokens, mask, **settings)


def ours(model: LanguageModel, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    settings = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True, **settings}
    return [result.tokens for result in generate(model, prompts, **settings)]


PENALTY: dict[str, Any] = {"repetition_penalty": 1.9}
"""Nearly every token is then a new one, so the order of many logits is compared, not one token over and over.
"""


@pytest.mark.parametrize(("name", "label"), CASES)
def test_greedy_text_is_the_reference_s(name: str, label: str) -> None:
    theirs, model = pair(name, label)
    prompts = prompts_for(model)
    truth = one_by_one(theirs, prompts, **PENALTY)
    assert len({token for text in truth for token in text}) >= 12
    assert ours(model, prompts, **PENALTY) == truth
    assert ours(model, prompts, batch_size=2, **PENALTY) == truth
    assert [ours(model, [prompt], **PENALTY)[0] for prompt in prompts] == truth


@pytest.mark.parametrize("name", NAMES)
def test_without_a_penalty_and_with_suppressed_tokens(name: str) -> None:
    theirs, model = pair(name, next(iter(trials(name))))
    prompts = prompts_for(model)
    free = one_by_one(theirs, prompts)
    assert ours(model, prompts) == free
    if model.family.model_type not in BLIND_TO_PADDING:
        assert padded(theirs, prompts) == free
    settings: dict[str, Any] = {
        "suppress_tokens": [free[1][3], free[2][-1]],
        "begin_suppress_tokens": [text[0] for text in free[:3]],
    }
    truth = one_by_one(theirs, prompts, **settings)
    assert truth != free
    assert ours(model, prompts, **settings) == truth


@pytest.mark.parametrize("name", NAMES)
def test_ends_where_the_reference_ends(name: str) -> None:
    """Rows leave the batch at different steps; one that may not end yet takes the next best token."""
    theirs, model = pair(name, next(iter(trials(name))))
    prompts = prompts_for(model)
    free = one_by_one(theirs, prompts, **PENALTY)
    ends = _tokens_that_come_at_different_times(free)
    for least in (0, 5):
        truth = one_by_one(theirs, prompts, eos_token_id=ends, min_new_tokens=least, **PENALTY)
        mine = ours(model, prompts, stop_tokens=ends, min_new_tokens=least, **PENALTY)
        assert mine == truth
        if not least:
            assert len(set(map(len, mine))) > 1


def _tokens_that_come_at_different_times(texts: list[list[int]]) -> list[int]:
    def times(token: int) -> int:
        return len({text.index(token) if token in text else NEW for text in texts})

    return sorted({token for text in texts for token in text}, key=lambda token: -times(token))[:2]
