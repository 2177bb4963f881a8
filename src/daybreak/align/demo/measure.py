"""What a model's answers to prompts that nothing learned from are like, and what it has forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from daybreak.align.demo.labeller import Label, labelled
from daybreak.align.demo.texts import Texts
from daybreak.align.reward_model import RewardModel
from daybreak.align.sampling import Written, kl, write
from daybreak.engine.settings import Sampling
from daybreak.language_model import LanguageModel
from daybreak.quickstart.score import bits_per_byte

PARTS = ("parses", "documented", "returns", "used")


@dataclass(frozen=True)
class Measured:
    """A model's figures."""

    answers: int
    label: float
    """The labeller's score, mean of 0 to 4."""
    parts: dict[str, float]
    """Shares of answers that have each of what it asks for."""
    full: float
    """Share of answers that have all of it."""
    reward: float | None
    """The reward model's, mean; None: there is none yet."""
    kl: float | None
    """Nats per answer from the model that was tuned on demonstrations (k3)."""
    kl_k1: float | None
    """The same by k1."""
    length: float
    """Tokens of an answer."""
    ended: float
    """Share of answers that end by themselves."""
    distinct: float
    """Share of answers, without their prompts, that are different."""
    bits_per_byte: float
    """On files that nothing learned from: what alignment cost."""


def answered(model: LanguageModel, prompts: Sequence[str], room: int, seed: int, n: int = 1) -> list[Written]:
    """Answers at temperature 1."""
    sampling = Sampling(max_new_tokens=room, temperature=1.0, n=n, seed=seed)
    return write(model, list(prompts), sampling, batch_size=64)


def label_of(one: Written) -> Label:
    """What the labeller says of an answer behind its prompt."""
    return labelled(f"{one.prompt}{one.words}", one.ended)


def measured(
    model: LanguageModel,
    prompts: Sequence[str],
    texts: Texts,
    room: int,
    seed: int,
    reward: RewardModel | None = None,
    reference: LanguageModel | None = None,
) -> tuple[Measured, list[Written]]:
    """The figures, and the answers."""
    model.decoder.eval()
    written = answered(model, prompts, room, seed)
    labels = [label_of(one) for one in written]
    far = None if reference is None else kl(written, reference.decoder)
    rewards = None if reward is None else reward.rewards([one.text.tokens for one in written])
    figures = Measured(
        answers=len(written),
        label=fmean(one.score for one in labels),
        parts={name: fmean(float(getattr(one, name)) for one in labels) for name in PARTS},
        full=fmean(float(all(vars(one).values())) for one in labels),
        reward=None if rewards is None else float(rewards.mean()),
        kl=None if far is None else far.k3,
        kl_k1=None if far is None else far.k1,
        length=fmean(one.text.length for one in written),
        ended=fmean(float(one.ended) for one in written),
        distinct=len({one.words for one in written}) / len(written),
        bits_per_byte=forgetting(model, texts),
    )
    return figures, written


@torch.no_grad()
def forgetting(model: LanguageModel, texts: Texts) -> float:
    """Bits per byte of the validation files."""
    tokenizer = model.tokenizer
    assert tokenizer is not None and tokenizer.bos_id is not None
    documents = [
        np.array([tokenizer.bos_id, *tokenizer.encode(file.text, bos=False, special=False)], dtype=np.int32)
        for file in texts.validation
    ]
    size, context = sum(len(file.content) for file in texts.validation), model.architecture.context
    return bits_per_byte(model.decoder, documents, size, context, context // 2)
