"""The formulas of PPO, against a token at a time in Python's numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak.objectives import policy
from tests.reference import ppo as slow

NUMBERS = st.floats(-8, 8, allow_nan=False, width=32)
KINDS = ("logprobs", "reference", "before", "values", "old_values", "rewards")


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """Figures of a few answers of different lengths, as lists and, padded with what must not count, as
    tensors."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    rows = {
        kind: [draw(st.lists(NUMBERS, min_size=size, max_size=size)) for size in lengths] for kind in KINDS
    }
    longest = max(1, *lengths) + draw(st.integers(0, 2))
    mask = torch.tensor([[place < size for place in range(longest)] for size in lengths])
    tensors = {kind: padded(rows[kind], longest) for kind in KINDS}
    scores = [draw(NUMBERS) for _ in lengths]
    return {"rows": rows, "mask": mask, "scores": scores, **tensors}


def padded(rows: list[list[float]], longest: int) -> Tensor:
    return torch.tensor([[*row, *[math.nan] * (longest - len(row))] for row in rows], dtype=torch.float64)


def listed(found: Tensor, mask: Tensor) -> list[list[float]]:
    """Rows without padding, which must be 0."""
    assert not torch.where(mask, 0.0, found).any()
    return [row[own].tolist() for row, own in zip(found, mask, strict=True)]


def same(found: Tensor, mask: Tensor, wanted: list[list[float]]) -> None:
    for row, other in zip(listed(found, mask), wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-9, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(answers(), st.floats(0, 2))
def test_rewards_are_the_penalty_and_the_score_at_the_last_token(given: dict[str, Any], beta: float) -> None:
    rows, mask = given["rows"], given["mask"]
    scores = torch.tensor(given["scores"], dtype=torch.float64)
    found = policy.token_rewards(scores, given["logprobs"], given["reference"], mask, beta)
    pairs = zip(given["scores"], rows["logprobs"], rows["reference"], strict=True)
    same(found, mask, [slow.rewards(*each, beta) for each in pairs])


@settings(max_examples=50, deadline=None)
@given(answers(), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_sums_of_later_surprises(
    given: dict[str, Any], discount: float, decay: float
) -> None:
    rows, mask = given["rows"], given["mask"]
    found = policy.advantages(given["rewards"], given["values"], mask, discount, decay)
    pairs = zip(rows["rewards"], rows["values"], strict=True)
    same(found, mask, [slow.advantages(*each, discount, decay) for each in pairs])


def test_advantages_at_decay_1_are_what_is_still_to_come_against_what_was_expected() -> None:
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    mask = torch.ones(3, 5, dtype=torch.bool)
    found = policy.advantages(rewards, values, mask, 1.0, 1.0)
    assert torch.allclose(found + values, rewards.flip(1).cumsum(1).flip(1))


@settings(max_examples=50, deadline=None)
@given(answers(), st.booleans())
def test_whitening_sees_the_tokens_alone(given: dict[str, Any], shift: bool) -> None:
    found = policy.whiten(given["rewards"], given["mask"], shift)
    same(found, given["mask"], slow.whiten(given["rows"]["rewards"], shift))


def test_whitened_numbers_have_mean_0_and_variance_1_or_keep_their_mean() -> None:
    values, mask = 3 + 5 * torch.randn(20, 30, dtype=torch.float64), torch.rand(20, 30) < 0.6
    white, scaled = policy.whiten(values, mask)[mask], policy.whiten(values, mask, shift_mean=False)[mask]
    assert white.mean().item() == pytest.approx(0, abs=1e-9)
    assert white.var(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert scaled.mean().item() == pytest.approx(values[mask].mean().item(), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(answers(), st.floats(0.05, 0.5))
def test_the_clipped_losses(given: dict[str, Any], clip: float) -> None:
    rows, mask = given["rows"], given["mask"]
    losses, clipped = policy.policy_losses(given["logprobs"], given["before"], given["rewards"], mask, clip)
    triples = zip(rows["logprobs"], rows["before"], rows["rewards"], strict=True)
    wanted = [[slow.policy_loss(*one, clip) for one in zip(*each, strict=True)] for each in triples]
    same(losses, mask, wanted)
    ratios = (given["logprobs"] - given["before"]).exp()
    assert not clipped[~mask].any()
    assert not (clipped & ((ratios - 1).abs() < clip * 0.999)).any()
    value, _ = policy.value_losses(given["values"], given["old_values"], given["rewards"], mask, clip)
    triples = zip(rows["values"], rows["old_values"], rows["rewards"], strict=True)
    same(value, mask, [[slow.value_loss(*one, clip) for one in zip(*each, strict=True)] for each in triples])


def test_a_ratio_beyond_the_clip_has_no_gradient_where_it_would_go_further() -> None:
    """Arrived at 1.5 with a good token, or at 0.5 with a bad one; but the way back stays open."""
    before = torch.zeros(4, 1)
    logprobs = torch.tensor([[1.5], [0.5], [1.5], [0.5]]).log().requires_grad_()
    gained = torch.tensor([[1.0], [-1.0], [-1.0], [1.0]])
    losses, clipped = policy.policy_losses(logprobs, before, gained, torch.ones(4, 1, dtype=torch.bool))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    assert logprobs.grad[:, 0].tolist() == pytest.approx([0, 0, 1.5, -0.5])
    assert clipped[:, 0].tolist() == [True, True, False, False]


def test_at_the_policy_that_wrote_the_gradient_is_the_policy_gradient() -> None:
    logprobs, gained = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    losses, _ = policy.policy_losses(logprobs, logprobs.detach(), gained, mask)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None and torch.allclose(logprobs.grad, torch.where(mask, -gained, 0.0))


def test_padding_has_no_gradient_even_where_nothing_sensible_stands() -> None:
    mask = torch.tensor([[True, False]])
    logprobs = torch.tensor([[-1.0, math.inf]]).requires_grad_()
    values = torch.tensor([[0.5, math.nan]]).requires_grad_()
    wrote, gained = torch.tensor([[-1.1, 0.0]]), torch.tensor([[1.0, 0.0]])
    losses = policy.policy_losses(logprobs, wrote, gained, mask)[0]
    (losses.sum() + policy.value_losses(values, wrote, gained, mask)[0].sum()).backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None and logprobs.grad[0, 1] == 0 and logprobs.grad[0, 0] != 0


@settings(max_examples=50, deadline=None)
@given(answers())
def test_estimates_of_the_divergence(given: dict[str, Any]) -> None:
    rows, mask = given["rows"], given["mask"]
    pairs = list(zip(rows["logprobs"], rows["reference"], strict=True))
    k3 = policy.kl_k3(given["logprobs"].float(), given["reference"].float(), mask)
    assert (k3 >= 0).all()
    same(k3, mask, [[slow.k3(*one) for one in zip(*each, strict=True)] for each in pairs])
    k1 = policy.kl_k1(given["logprobs"], given["reference"], mask)
    same(k1, mask, [[own - other for own, other in zip(*each, strict=True)] for each in pairs])


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 0, width=32), st.floats(-0.0009765625, 0.0009765625, width=32))
def test_k3_is_never_negative_however_close_the_two_are(logprob: float, distance: float) -> None:
    own = torch.tensor([[logprob]])
    assert policy.kl_k3(own, own + distance, torch.ones(1, 1, dtype=torch.bool)).item() >= 0


def test_the_means_of_both_estimates_are_the_divergence() -> None:
    """Over tokens drawn by the policy, weighted by their probabilities and so exact."""
    own, other = torch.randn(2, 1, 9, dtype=torch.float64).log_softmax(-1).unbind()
    mask = torch.ones_like(own, dtype=torch.bool)
    exact = (own.exp() * (own - other)).sum().item()
    for estimate in (policy.kl_k1, policy.kl_k3):
        assert (own.exp() * estimate(own, other, mask)).sum().item() == pytest.approx(exact, rel=1e-9)


def test_entropy_and_what_a_critic_explains() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, -math.inf]])
    assert policy.entropies(logits).tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)
    returns, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.8
    assert policy.explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert policy.explained_variance(torch.zeros(4, 6), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert policy.explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert math.isnan(policy.explained_variance(returns, torch.ones(4, 6), mask))


@pytest.mark.parametrize(("kl", "factor"), [(6, 1.0), (6.6, 1.00512), (60, 1.01024), (0, 0.98976)])
def test_beta_follows_the_divergence_by_little_at_a_time(kl: float, factor: float) -> None:
    assert policy.adapted_beta(0.2, kl, episodes=512) == pytest.approx(0.2 * factor)


@settings(max_examples=30, deadline=None)
@given(answers())
def test_last_tokens(given: dict[str, Any]) -> None:
    for row, own in zip(policy.last_tokens(given["mask"]), given["mask"], strict=True):
        size = int(own.sum())
        assert row.tolist() == [place == size - 1 for place in range(len(own))]
