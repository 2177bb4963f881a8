"""One step: the gradient of the mean loss over all sequences of all devices, ready for the optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from daybreak.data.loader import Windows
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch, Objective
from daybreak.train import parallel
from daybreak.train.precision import Loss
from daybreak.train.watch import Seen
from daybreak.train.world import World

EMBEDDING = "tokens.weight"


def share(count: int, position: int, world: World) -> range:
    """Which of a step's `count` sequences from `position` on this process reads: its data rank's part."""
    each = count // world.data_ranks
    begin = position + each * world.data_rank
    return range(begin, begin + each)


def batches(
    objective: Objective, windows: Windows, numbers: Sequence[int], micro: int, device: torch.device
) -> list[Batch]:
    """The sequences of one process, at most `micro` at a time."""
    found = []
    for first in range(0, len(numbers), micro):
        rows = slice(first, first + micro)
        lengths = None if windows.lengths is None else windows.lengths[rows]
        found.append(_moved(objective.batch(windows.tokens[rows], numbers[rows], lengths), device))
    return found


@dataclass(frozen=True)
class Scale:
    """float16's loss scale."""

    value: float
    """What the mean loss of a micro-batch is multiplied by before its gradient is computed (Megatron-LM and
    apex count so)."""
    tokens: int
    """Of a micro-batch, the same on all processes."""


def gradient(
    decoder: Decoder, loss_of: Loss, parts: Sequence[Batch], world: World, step: int, scale: Scale | None
) -> Seen:
    """Add up the gradients of `parts` and of the other data ranks' parts, and say what came out.

    `loss_of` gives the sum of the losses of a batch. It is divided by the number of tokens that are predicted
    on all ranks, so the result does not depend on how a step's sequences are divided. With a loss `scale`
    the gradients are computed of the scaled mean of each micro-batch, which keeps them within the range of
    float16 however large the step is, and only then brought to their true size.
    """
    counted = torch.stack([(batch.targets != UNSCORED).sum() for batch in parts]).sum()
    total = world.sum(counted).clamp(min=1)
    factor = 1 / total.item() if scale is None else scale.value / scale.tokens
    losses = []
    for batch in parts:
        loss = loss_of(decoder, batch)
        (loss * factor).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach().double())
    loss = world.sum(torch.stack(losses).sum()) / total
    if scale is not None:
        _multiply(decoder, 1 / (factor * total.item()))
    norm = parallel.gradient_norm(decoder, world).item()
    embedding = parallel.norm(_embedding_gradient(decoder), world).item()
    # A loss that is a number with a gradient that is none is how the loss scale finds its height.
    overflow = scale is not None and math.isfinite(loss.item()) and not math.isfinite(norm)
    return Seen(step, loss.item(), norm, embedding, None if scale is None else scale.value, overflow)


def shrink_embedding_gradient(decoder: Decoder, factor: float) -> None:
    """The gradient that reaches the token embedding through the input is multiplied by `factor` from now on
    (GLM-130B, arXiv 2210.02414, section 3.3); the values stay as they are up to rounding."""

    def shrunk(module: Any, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        return output * factor + output.detach() * (1 - factor)

    decoder.tokens.register_forward_hook(shrunk)


def _embedding_gradient(decoder: Decoder) -> Iterator[Tensor]:
    found = decoder.get_parameter(EMBEDDING).grad
    if found is not None:
        yield found


def _multiply(decoder: Decoder, factor: float) -> None:
    gradients = [one.grad for one in decoder.parameters() if one.grad is not None]
    torch._foreach_mul_(gradients, factor)


def _moved(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    tensors: dict[str, Any] = {
        field.name: value.to(device, non_blocking=True)
        for field in dataclasses.fields(batch.reading)
        if isinstance(value := getattr(batch.reading, field.name), Tensor)
    }
    return Batch(dataclasses.replace(batch.reading, **tensors), batch.targets.to(device))
