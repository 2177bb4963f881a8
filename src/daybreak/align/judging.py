"""Who says how good answers are, and choosing the best of several by it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daybreak.align.encoding import TooLong, answered
from daybreak.align.reward_model import RewardModel
from daybreak.align.sampling import Progress, Written, write
from daybreak.data.rankings import Prompt
from daybreak.engine.prompts import Model
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError

Scorer = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]]
"""Prompts with their answers -> what each answer is worth, larger is better: a reward model, a program that
checks answers, a person."""


def scorer_of(model: RewardModel, batch: int = 32) -> Scorer:
    """A reward model as a scorer. It reads the words with its own tokenizer, and behind them the end of an
    answer, also where an answer was cut off."""

    def scored(answers: Sequence[tuple[Prompt, str]]) -> Sequence[float]:
        try:
            texts = [answered(model, prompt, words).tokens for prompt, words in answers]
        except TooLong as error:
            raise DaybreakError(
                f"the reward model cannot read an answer ({error}); set --max-new-tokens lower"
            ) from None
        return list(map(float, model.rewards(texts, batch)))

    return scored


@dataclass(frozen=True)
class Best:
    """The best of a prompt's answers, and what all of them are worth."""

    answer: Written
    rewards: tuple[float, ...]
    """In the order in which they were written."""

    @property
    def reward(self) -> float:
        return max(self.rewards)


def best_of(
    model: Model,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Best]:
    """Of `sampling.n` answers to each prompt the one that is worth most; the first of equals."""
    written = write(model, prompts, _warm(sampling), batch_size, progress)
    rewards = list(map(float, scorer([(one.prompt, one.words) for one in written])))
    if len(rewards) != len(written) or any(not math.isfinite(reward) for reward in rewards):
        raise DaybreakError("the scorer must give one finite number for every answer; correct it")
    found = []
    for first in range(0, len(written), sampling.n):
        own = tuple(rewards[first : first + sampling.n])
        found.append(Best(written[first + own.index(max(own))], own))
    return found


def kl_bound(n: int) -> float:
    """Best of n goes at most log n - (n - 1) / n nats away from the model that writes (Stiennon et al. 2020,
    arXiv 2009.01325, appendix G.3). It is an upper bound, and equality holds only where no two answers are
    the same (Beirami et al. 2024, arXiv 2401.01879): where answers are few, the true divergence is lower."""
    return math.log(n) - (n - 1) / n


def _warm(sampling: Sampling) -> Sampling:
    """Answers are drawn; a prompt with one answer, too."""
    return sampling if sampling.temperature is not None else dataclasses.replace(sampling, temperature=1.0)
