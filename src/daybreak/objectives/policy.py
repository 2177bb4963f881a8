"""Proximal policy optimisation of a language model: the formulas, as pure functions of tensors.

A policy writes answers, a score says what each is worth, and what the policy gives up of its reference is
taken off token by token (Ziegler et al. 2019, arXiv 1909.08593; InstructGPT, arXiv 2203.02155, section 3.5).
Tensors of answers are [answers, tokens] float32, each answer from its first token on; `mask`
[answers, tokens] bool is True at its tokens, the end token included. What stands elsewhere has no part in
anything, and results are 0 there. Log-probabilities and KL divergences are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1e-8
"""Added to a variance before its root is taken (lm-human-preferences)."""


def kl_k1(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """log pi - log pi_ref of every token: an estimate of KL(pi || pi_ref) without bias, which varies much and
    may be negative (Schulman 2020, Approximating KL divergence). [answers, tokens]"""
    return torch.where(mask, logprobs - reference, 0.0)


def kl_k3(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi) of every token: an estimate of the same without bias, which is never
    negative and varies less. [answers, tokens] float64: near 0 it is a difference of almost equal numbers."""
    ratio = torch.where(mask, reference.double() - logprobs.double(), 0.0)
    return (ratio.expm1() - ratio).clamp(min=0)  # below 0 by rounding alone


def token_rewards(
    scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, beta: float | Tensor
) -> Tensor:
    """What each token earns, [answers, tokens]: -beta (log pi - log pi_ref), and the last one the answer's
    score (`scores` [answers]) as well."""
    rewards = -beta * kl_k1(logprobs, reference, mask)
    return rewards + torch.where(last_tokens(mask), scores[:, None], 0.0)


def last_tokens(mask: Tensor) -> Tensor:
    """[answers, tokens] bool: True at each answer's last token; nowhere in an answer that has none."""
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~following


def advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float = 1.0, decay: float = 0.95
) -> Tensor:
    """Generalised advantage estimates (arXiv 1506.02438, equation 16), [answers, tokens].

    `values` are what the critic expected before each token was written. After the last token nothing is to be
    had. The returns that a critic learns from are these advantages and the values together.
    """
    found = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])  # [answers]: the advantage of the token behind
    value_behind = torch.zeros_like(later)
    for place in range(rewards.shape[1] - 1, -1, -1):
        here = mask[:, place]
        surprise = rewards[:, place] + discount * value_behind - values[:, place]
        later = torch.where(here, surprise + discount * decay * later, 0.0)
        value_behind = torch.where(here, values[:, place], 0.0)
        found[:, place] = later
    return found


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over all tokens of all answers; 0 where there is none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scaled to variance 1 over all tokens of all answers, and moved to mean 0 or, without `shift_mean`, kept
    at their mean (lm-human-preferences: advantages and rewards in turn)."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask)
    white = (values - mean) * torch.rsqrt(variance + SMALL)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def policy_losses(
    logprobs: Tensor, before: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective (arXiv 1707.06347, equation 7), negated, of every token, [answers, tokens], and
    where the clipped ratio is what counts, [answers, tokens] bool.

    `before` are the log-probabilities by the policy that wrote the tokens.
    """
    ratio = torch.where(mask, logprobs - before, 0.0).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.where(mask, torch.maximum(plain, clipped), 0.0), mask & (clipped > plain)


def value_losses(
    values: Tensor, before: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Half the squared error of every token's value, or that of the value held within `clip` of the one
    `before` where it is larger (lm-human-preferences), and where it is, as above."""
    values, before, returns = (torch.where(mask, one, 0.0) for one in (values, before, returns))
    held = torch.maximum(torch.minimum(values, before + clip), before - clip)
    plain, clipped = (values - returns).square(), (held - returns).square()
    return torch.maximum(plain, clipped) / 2, mask & (clipped > plain)


def entropies(logits: Tensor) -> Tensor:
    """[.., vocabulary] -> [..]: how undecided the policy is at each place."""
    table = logits.log_softmax(-1)
    shares = table.exp()
    return -torch.where(shares > 0, shares * table, 0.0).sum(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a critic that knows what is coming, 0 for one that
    says the same of everything. Not a number where all returns are equal."""
    wanted, missed = returns[mask].double(), (returns - values)[mask].double()
    whole = wanted.var(correction=0)
    return float("nan") if not whole else float(1 - missed.var(correction=0) / whole)


def adapted_beta(
    beta: float, kl: float, episodes: int, target: float = 6.0, horizon: float = 10_000.0
) -> float:
    """beta after `episodes` answers whose KL divergence, summed over the tokens of an answer, had the mean
    `kl` (arXiv 1909.08593, section 2.2): it grows while that is above `target`, and by little at a time."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)
