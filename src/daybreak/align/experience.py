"""What an iteration of PPO learns from: answers, how likely their tokens were, and what they were worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.align.players import Players
from daybreak.align.ppo_settings import PpoSettings
from daybreak.align.rollout import Answer, Laid, logprobs_and_entropies, mask_of, token_logprobs, token_values
from daybreak.errors import DaybreakError
from daybreak.objectives import policy
from daybreak.train.precision import products


@dataclass(frozen=True, eq=False)
class Experience:
    """Tensors are [answers, tokens] float32 on the CPU, 0 behind an answer's end."""

    answers: Sequence[Answer]
    mask: Tensor
    """bool: where there is a token."""
    logprobs: Tensor
    """By the policy that wrote them."""
    reference: Tensor
    """By the reference."""
    entropies: Tensor
    """Of the policy at each token."""
    values: Tensor
    """What the critic expected before each token."""
    rewards: Tensor
    """[answers]: what the reward model says."""
    scores: Tensor
    """[answers]: the same, or the penalty where an answer has no end."""
    advantages: Tensor
    """Whitened."""
    returns: Tensor
    """What the critic is to learn."""


def experienced(
    players: Players, answers: Sequence[Answer], settings: PpoSettings, beta: float, dtype: torch.dtype
) -> Experience:
    """Have every model read the answers, and count up what was gained. Raises `DaybreakError` for a reward
    that is no number."""
    rewards = players.rewards(answers, settings.update.micro)
    _check(players, answers, rewards)
    ended = torch.tensor([one.ended for one in answers])
    penalty = settings.rollout.no_end
    scores = rewards if penalty is None else torch.where(ended, rewards, penalty)
    read = _read(players, answers, settings.update.micro, dtype)
    mask = mask_of(answers)
    gained = policy.token_rewards(scores, read["logprobs"], read["reference"], mask, beta)
    if settings.update.whiten_rewards:
        gained = policy.whiten(gained, mask, shift_mean=False)
    plain = policy.advantages(gained, read["values"], mask, settings.update.gamma, settings.update.lam)
    return Experience(
        answers=answers,
        mask=mask,
        rewards=rewards,
        scores=scores,
        advantages=policy.whiten(plain, mask),
        returns=plain + read["values"],
        **read,
    )


@torch.no_grad()
def _read(players: Players, answers: Sequence[Answer], micro: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Answers of a similar length are read together."""
    shape = mask_of(answers).shape
    found = {name: torch.zeros(shape) for name in ("logprobs", "entropies", "reference", "values")}
    decoder, device = players.policy.decoder, players.device
    order = sorted(range(len(answers)), key=lambda place: len(answers[place].whole))
    for first in range(0, len(order), micro):
        rows = order[first : first + micro]
        laid = Laid.of([answers[row] for row in rows], device)
        with products(dtype, device.type):
            own, undecided = logprobs_and_entropies(decoder, laid)
            with players.reference() as reference:
                other = token_logprobs(reference, laid)
            values = token_values(players.critic, laid, players.shift)
        parts = {"logprobs": own, "entropies": undecided, "reference": other, "values": values}
        for name, part in parts.items():
            found[name][rows, : part.shape[1]] = part.cpu()
    return found


def _check(players: Players, answers: Sequence[Answer], rewards: Tensor) -> None:
    for one, reward in zip(answers, rewards.tolist(), strict=True):
        if not math.isfinite(reward):
            raise DaybreakError(
                f"the reward model says {reward} of {players.told(one)}; nothing can be learned from that. "
                "Look at its training, or give another one with --reward"
            )
