"""What is learned from people's preferences among answers: rewards from rankings, and policies from pairs.

A policy's objectives take log-ratios, log pi(answer) - log pi_ref(answer) in nats, summed over the tokens of
an answer; what stands before the answer has no part in them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Batch, token_losses


def ranking_losses(scores: Tensor, values: Tensor, real: Tensor | None = None) -> Tensor:
    """The loss of a reward model for each prompt: the mean of -log sigmoid(r_w - r_l) over its pairs
    (InstructGPT, arXiv 2203.02155, equation 1).

    `scores` [prompts, answers] are the model's, `values` [prompts, answers] say how good people found the
    answers (any numbers, larger is better), `real` [prompts, answers] bool where there is an answer at all;
    None: everywhere. -> [prompts]. The sum of a prompt with K answers is divided by C(K, 2) whether some of
    its pairs are ties or not: a tie says nothing of either, and leaves its share out.
    """
    better = values[:, :, None] > values[:, None]  # [prompts, winners, losers]
    counts = torch.full_like(scores[:, 0], scores.shape[1])
    if real is not None:
        better = better & real[:, :, None] & real[:, None]
        scores = scores.masked_fill(~real, 0.0)  # whatever stands there must not reach the gradient
        counts = real.sum(1).to(scores.dtype)
    losses = -logsigmoid(scores[:, :, None] - scores[:, None]) * better
    return losses.sum((1, 2)) / (counts * (counts - 1) / 2).clamp(min=1)


def answer_log_probs(decoder: Decoder, batch: Batch) -> Tensor:
    """[rows] log-probability of each row's targets together, in nats: the sum over its answer's tokens."""
    return -token_losses(decoder, batch).view(batch.targets.shape).sum(1)


def dpo_losses(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, equation 7): the log-ratios [pairs] of the better and
    the worse answers -> [pairs].

    `smoothing` is the share of the pairs that are believed to be labelled the wrong way round (the authors'
    conservative DPO, equation 3 of their note of 2023).
    """
    margins = beta * (chosen - rejected)
    return -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)


def hinge_losses(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Sequence likelihood calibration's hinge on DPO's margin (arXiv 2309.06657, equation 12): log-ratios
    [pairs] of the better and the worse answers -> [pairs]."""
    return torch.relu(1 - beta * (chosen - rejected))


def ipo_losses(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation (arXiv 2310.12036, equation 17, where beta is tau): log-ratios [pairs]
    *per token* of the better and the worse answers -> [pairs].

    Its square pulls the margin to 1 / (2 beta) and not beyond. Sums over tokens would make that target mean
    something else for every length; the authors divide by the number of tokens.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto_losses(
    ratios: Tensor,
    desirable: Tensor,
    reference: Tensor,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Kahneman-Tversky optimisation (arXiv 2402.01306, equation 8): log-ratios [answers], of which those that
    are `desirable` [answers] bool were liked and the others were not -> [answers].

    `reference` is the point z0 that gains and losses are counted from, see `kto_reference`; `weights` those
    of liked and disliked answers.
    """
    gains = torch.where(desirable, ratios - reference, reference - ratios)
    factors = torch.where(desirable, weights[0], weights[1]).to(ratios.dtype)
    return factors * (1 - torch.sigmoid(beta * gains))


def kto_reference(mismatched: Tensor) -> Tensor:
    """KTO's z0, an estimate of KL(pi || pi_ref): the mean log-ratio of answers [answers] each behind another
    prompt than its own, and at least 0. Nothing flows back through it."""
    return mismatched.detach().mean().clamp(min=0)
