"""A step of PPO: the gradient of the clipped objectives over a minibatch, and of the pretraining text that is
mixed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.align.experience import Experience
from daybreak.align.players import Players
from daybreak.align.ppo_settings import PpoSettings
from daybreak.align.rollout import Laid, token_logprobs, token_values
from daybreak.objectives import policy
from daybreak.objectives.causal import Causal
from daybreak.objectives.summed import loss_sum
from daybreak.train.precision import products


@dataclass(frozen=True)
class Learned:
    """Means over the tokens of a minibatch."""

    policy_loss: float
    value_loss: float
    clipped: float
    """Share of tokens whose clipped ratio is what counts."""
    value_clipped: float
    moved: float
    """Estimate (k3) of KL(policy that wrote || policy now) per token."""
    mixed_loss: float | None
    """Nats per token of the text that is mixed in; None: there is none."""


def add_gradients(
    players: Players,
    seen: Experience,
    rows: Sequence[int],
    settings: PpoSettings,
    dtype: torch.dtype,
    mixed: Tensor | None,
) -> Learned:
    """Add up the gradients of the answers `rows` of `seen`, each token counting the same, and of `mixed`
    [sequences, length + 1] int64, pretraining text, with its weight.

    Policy and critic have no weights in common, so a coefficient between their losses would say nothing that
    their learning rates don't say.
    """
    counted = int(seen.mask[list(rows)].sum())
    order = sorted(rows, key=lambda row: len(seen.answers[row].whole))
    sums = torch.zeros(5, dtype=torch.float64)
    for first in range(0, len(order), settings.update.micro):
        sums += _part(players, seen, order[first : first + settings.update.micro], settings, dtype, counted)
    gained, missed, clipped, held, moved = (sums / counted).tolist()
    mixed_loss = None if mixed is None else _mix(players, mixed, settings, dtype)
    return Learned(gained, missed, clipped, held, moved, mixed_loss)


def _part(
    players: Players,
    seen: Experience,
    rows: Sequence[int],
    settings: PpoSettings,
    dtype: torch.dtype,
    counted: int,
) -> Tensor:
    laid = Laid.of([seen.answers[row] for row in rows], players.device)
    mask, update = laid.mask, settings.update

    def of(whole: Tensor) -> Tensor:
        return whole[list(rows), : mask.shape[1]].to(players.device)

    before, gained, expected, returns = map(of, (seen.logprobs, seen.advantages, seen.values, seen.returns))
    with products(dtype, players.device.type):
        own = token_logprobs(players.policy.decoder, laid)
        values = token_values(players.critic, laid, players.shift)
    losses, clipped = policy.policy_losses(own, before, gained, mask, update.clip)
    missed, held = policy.value_losses(values, expected, returns, mask, update.value_clip)
    (losses.sum() / counted).backward()  # type: ignore[no-untyped-call]
    (missed.sum() / counted).backward()  # type: ignore[no-untyped-call]
    moved = policy.kl_k3(before, own.detach(), mask)
    found = (losses.detach(), missed.detach(), clipped, held, moved)
    return torch.stack([one.double().sum() for one in found]).cpu()


def _mix(players: Players, windows: Tensor, settings: PpoSettings, dtype: torch.dtype) -> float:
    total, predicted = 0.0, windows.shape[0] * (windows.shape[1] - 1)
    for part in torch.split(windows.to(players.device), settings.update.micro):
        with products(dtype, players.device.type):
            loss = loss_sum(players.policy.decoder, Causal().batch(part))
        (loss * (settings.ptx.weight / predicted)).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total / predicted
