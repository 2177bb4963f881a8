"""A policy of a few tokens whose best distribution is known: PPO's objective, E[score] - beta KL, is
highest for pi_ref(answer) exp(score(answer) / beta), normalised (arXiv 2305.18290, equation 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import daybreak
from daybreak import settings as reading
from daybreak.align.players import Players
from daybreak.align.ppo_run import PpoOutcome, Session
from daybreak.align.ppo_settings import PpoSettings
from daybreak.align.reward_model import RewardModel
from daybreak.data.loader import Loader
from daybreak.language_model import LanguageModel
from daybreak.train.stop import Stop
from tests.unit.tiny_run import Silent

VOCABULARY, END = 5, 4
PROMPTS = ((0,), (1, 2), (3, 3, 1))
LONGEST = 2
BETA = 0.5


def model_of(seed: int = 0) -> LanguageModel:
    """A decoder without a tokenizer, whose texts end with `END`."""
    shape: dict[str, Any] = {"vocabulary": VOCABULARY, "context": 8, "layers": 1, "width": 16, "heads": 2}
    model = daybreak.create("gpt2", seed=seed, inner=32, **shape)
    model.config = {"eos_token_id": END}
    with torch.no_grad():
        for one in model.decoder.parameters():
            one.mul_(3)  # a reference with opinions
    return model


class Table:
    """Judges an answer by what stands in it, and nothing by what it was asked."""

    def __init__(self, scores: dict[tuple[int, ...], float]) -> None:
        self.scores = scores

    def rewards(self, texts: Sequence[Sequence[int]], batch: int = 32) -> Tensor:
        del batch
        return torch.tensor([self.scores[answer_in(text)] for text in texts])


def answer_in(text: Sequence[int]) -> tuple[int, ...]:
    prompt = next(one for one in PROMPTS if tuple(text[: len(one)]) == one)
    return tuple(text[len(prompt) :])


def answers() -> list[tuple[int, ...]]:
    """All that there are: up to `LONGEST` tokens, the last of which may be the end."""
    found = []
    for size in range(1, LONGEST + 1):
        for one in product(range(VOCABULARY), repeat=size):
            if END not in one[:-1] and (one[-1] == END or size == LONGEST):
                found.append(one)
    return found


def table(seed: int = 1) -> Table:
    draws = torch.rand(len(answers()), generator=torch.Generator().manual_seed(seed))
    return Table(dict(zip(answers(), (3 * draws).tolist(), strict=True)))


@torch.no_grad()
def distribution(model: LanguageModel, prompt: Sequence[int]) -> Tensor:
    """Of all `answers`, float64."""
    found = []
    for answer in answers():
        logits = model.logits(torch.tensor([[*prompt, *answer]])).double().log_softmax(-1)[0]
        places = range(len(prompt) - 1, len(prompt) - 1 + len(answer))
        found.append(math.exp(sum(float(logits[p, t]) for p, t in zip(places, answer, strict=True))))
    return torch.tensor(found, dtype=torch.float64)


def best(reference: Tensor, judge: Table, beta: float = BETA) -> Tensor:
    """The closed form."""
    scores = torch.tensor([judge.scores[one] for one in answers()], dtype=torch.float64)
    raised = reference * (scores / beta).exp()
    return raised / raised.sum()


def distance(first: Tensor, second: Tensor) -> float:
    """Total variation: the largest difference in probability of any set of answers."""
    return float((first - second).abs().sum() / 2)


def settings(**tree: Any) -> PpoSettings:
    base = {
        "episodes": 50 * 512,
        "rollout": {"answers": 512, "max_new_tokens": LONGEST, "no_end": None, "batch_size": 512},
        "update": {"minibatch": 512, "micro": 512, "epochs": 4, "value_clip": 1.0},
        "optimizer": {"lr": 1e-3, "value_lr": 3e-3, "warmup": 3, "ema": 0.95},
        "kl": {"beta": BETA},
        "samples": {"every": 0},
        "checkpoints": {"every": 1000, "background": False},
    }
    return reading.build(PpoSettings, reading.merged(base, tree))


def session(
    folder: Path, given: PpoSettings, judge: Table | None = None, loader: Loader | None = None
) -> Session:
    policy = model_of()
    players = Players(policy, judge or table(), RewardModel.of(model_of(1)))
    return Session(given, players, [(one,) for one in PROMPTS], folder, Silent(), loader)


def trained(folder: Path, given: PpoSettings, **more: Any) -> tuple[PpoOutcome, Session]:
    made = session(folder, given, **more)
    return made.run(Stop()), made
