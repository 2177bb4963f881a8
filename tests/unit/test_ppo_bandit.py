"""PPO where the best policy is known: it gets there, and with something wrong in it, it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import daybreak
from daybreak.align import rounds
from daybreak.align.rollout import Answer
from daybreak.language_model import LanguageModel
from daybreak.objectives import policy
from tests.unit import tiny_bandit as bandit

CLOSE = 0.05
"""Total variation within which the policy has to come; it begins further than 0.25 away."""


# Without a network: a table of logits for the first token, and one for the second behind each first one.

TOKENS, LAST, BETA = 4, 3, 0.5


class Tables(torch.nn.Module):
    """Answers of up to two tokens; a first token `LAST` ends one."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(TOKENS, generator=draw))
        self.second = torch.nn.Parameter(torch.randn(TOKENS, TOKENS, generator=draw))
        self.value = torch.nn.Parameter(torch.zeros(1 + TOKENS))

    def logprobs(self, answers: Tensor) -> Tensor:
        """[answers, 2] for answers [answers, 2]."""
        first, second = self.first.log_softmax(0), self.second.log_softmax(1)
        return torch.stack([first[answers[:, 0]], second[answers[:, 0], answers[:, 1]]], 1)

    def values(self, answers: Tensor) -> Tensor:
        return torch.stack([self.value[0].expand(len(answers)), self.value[1 + answers[:, 0]]], 1)

    def whole(self) -> Tensor:
        """The probability of every answer, [first, second]; an answer that ends at once is spread over its
        row."""
        return (self.first.log_softmax(0)[:, None] + self.second.log_softmax(1)).exp().detach()


def learned(steps: int = 250, count: int = 512) -> tuple[Tensor, Tensor]:
    """What PPO comes to, averaged over its last half, and the best, as probabilities of answers."""
    draw = torch.Generator().manual_seed(1)
    worth = 3 * torch.rand(TOKENS, TOKENS, generator=draw)
    worth[LAST] = worth[LAST, 0]
    tables, start = Tables(), Tables()
    reference = start.whole()
    optimizer = torch.optim.Adam(tables.parameters(), lr=0.03)
    average = torch.zeros(TOKENS, TOKENS)
    for step in range(steps):
        flat = torch.multinomial(tables.whole().flatten(), count, replacement=True, generator=draw)
        answers = torch.stack([flat // TOKENS, flat % TOKENS], 1)
        mask = torch.stack([torch.ones(count, dtype=torch.bool), answers[:, 0] != LAST], 1)
        with torch.no_grad():
            wrote, expected = tables.logprobs(answers), tables.values(answers)
            other = start.logprobs(answers)
            scores = worth[answers[:, 0], answers[:, 1]]
            gained = policy.token_rewards(scores, wrote, other, mask, BETA)
            plain = policy.advantages(gained, expected, mask)
            white, returns = policy.whiten(plain, mask), plain + expected
        for rows in torch.randperm(count, generator=draw).split(count // 2):
            losses, _ = policy.policy_losses(
                tables.logprobs(answers[rows]), wrote[rows], white[rows], mask[rows]
            )
            missed, _ = policy.value_losses(
                tables.values(answers[rows]), expected[rows], returns[rows], mask[rows]
            )
            total = policy.masked_mean(losses, mask[rows]) + policy.masked_mean(missed, mask[rows])
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if step >= steps // 2:
            average += tables.whole() / (steps - steps // 2)
    best = reference * (worth / BETA).exp()
    return _ended(average), _ended(best / best.sum())


def _ended(shares: Tensor) -> Tensor:
    """Answers that end at once are one answer."""
    return torch.cat([shares[:LAST].flatten(), shares[LAST].sum()[None]])


def test_a_table_learns_the_best_policy() -> None:
    found, best = learned()
    assert bandit.distance(found, best) < CLOSE
    assert bandit.distance(_ended(Tables().whole()), best) > 0.25


def _sign(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda scores, own, other, mask, beta: real(scores, other, own, mask, beta)


def _beta(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda scores, own, other, mask, beta: real(scores, own, other, mask, 2 * beta)


def _no_penalty(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda scores, own, other, mask, beta: real(scores, own, other, mask, 0.0)


def _everywhere(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The score behind the end of a short answer."""
    return lambda scores, own, other, mask, beta: real(scores, own, other, torch.ones_like(mask), beta)


def _first(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The score at the first token: the second one never hears of it."""

    def wrong(scores: Tensor, own: Tensor, other: Tensor, mask: Tensor, beta: float) -> Tensor:
        return real(torch.zeros_like(scores), own, other, mask, beta) + torch.stack(
            [scores, torch.zeros_like(scores)], 1
        )

    return wrong


def _negated(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: -real(*args)


def _upside_down(real: Callable[..., Any]) -> Callable[..., Any]:
    """pi_old / pi."""
    return lambda own, before, *rest: real(before, own, *rest)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("token_rewards", _sign),
        ("token_rewards", _beta),
        ("token_rewards", _no_penalty),
        ("token_rewards", _everywhere),
        ("token_rewards", _first),
        ("advantages", _negated),
        ("policy_losses", _upside_down),
    ],
)
def test_a_broken_one_is_noticed(
    name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, name, wrong(getattr(policy, name)))
    found, best = learned()
    assert not bandit.distance(found, best) < 2 * CLOSE


# The whole loop, with decoders.


def drawn(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    room: int,
    seed: int,
    batch_size: int = 1,
    stop_tokens: Sequence[int] = (),
) -> list[Answer]:
    """Answers from the exact distribution: the engine draws each token by itself, which takes longer."""
    del batch_size, stop_tokens
    assert room == bandit.LONGEST
    draw, every = torch.Generator().manual_seed(seed), bandit.answers()
    shares = {tuple(prompt): bandit.distribution(model, prompt) for prompt in bandit.PROMPTS}
    found = []
    for prompt in prompts:
        tokens = every[int(torch.multinomial(shares[tuple(prompt)], 1, generator=draw))]
        found.append(Answer(tuple(prompt), tokens, tokens[-1] == bandit.END))
    return found


def check(folder: Path, **tree: Any) -> None:
    outcome, _ = bandit.trained(folder, bandit.settings(**tree))
    assert outcome.exported is not None
    found, reference = daybreak.load(outcome.exported), bandit.model_of()
    for prompt in bandit.PROMPTS:
        begun = bandit.distribution(reference, prompt)
        best = bandit.best(begun, bandit.table())
        assert bandit.distance(begun, best) > 0.25
        assert bandit.distance(bandit.distribution(found, prompt), best) < CLOSE


def test_the_loop_learns_the_best_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "write_answers", drawn)
    check(tmp_path / "run")


@pytest.mark.slow
def test_so_it_does_with_answers_that_the_engine_draws(tmp_path: Path) -> None:
    check(tmp_path / "run")
