"""The sum of a batch's losses, with the head's gradient computed on the way forwards.

A vocabulary is large: in a small model the head is a third to a half of all work, and its logits are most of
the memory. Here each part of the logits lives from its product to its gradient and is then overwritten by the
next part, so none are kept for the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional

from daybreak.model.decoder import Decoder
from daybreak.model.few_bits import FewBits
from daybreak.objectives.batch import UNSCORED, Batch, token_losses

ROWS = 512
"""Tokens whose logits are in memory at once: products of fewer rows are slower."""
LINE = 32
"""Rows of logits begin at multiples of so many numbers. A vocabulary of 50257 would let them begin anywhere,
and a product that writes such rows takes a third longer."""


def loss_sum(decoder: Decoder, batch: Batch) -> Tensor:
    """The losses of all predicted tokens of `batch` in nats, added up: a float32 scalar.

    Backwards once only. Where the head is cut over processes or of few bits, and on GPUs, it is the plain sum
    of `token_losses`.
    """
    matrix = _matrix(decoder)
    if matrix is None or isinstance(matrix, DTensor) or matrix.device.type != "cpu":
        return token_losses(decoder, batch).sum()
    hidden = decoder(batch.reading).flatten(0, 1)  # [batch * length, width]
    bias = None if decoder.architecture.tied else decoder.head.bias
    total: Tensor = _head(hidden, matrix, bias, batch.targets.reshape(-1))
    return total


def scored_loss_sum(decoder: Decoder, batch: Batch) -> Tensor:
    """The same, for batches of which few places have a target, as answers behind long prompts: the others are
    not brought before the head. Also for a head that is frozen or has adapters."""
    scored = batch.targets != UNSCORED
    hidden, wanted = decoder(batch.reading)[scored], batch.targets[scored]  # [predicted, width]
    matrix = _matrix(decoder)
    if matrix is not None and matrix.device.type == "cpu" and matrix.requires_grad and len(wanted):
        bias = None if decoder.architecture.tied else decoder.head.bias
        total: Tensor = _head(hidden, matrix, bias, wanted)
        return total
    losses = [hidden.new_zeros((), dtype=torch.float32)]
    for first in range(0, len(wanted), ROWS):
        rows = slice(first, first + ROWS)
        logits = decoder.unembed(hidden[rows]).float()  # [rows, vocabulary]
        losses.append(functional.cross_entropy(logits, wanted[rows], reduction="sum"))
    return torch.stack(losses).sum()


def _matrix(decoder: Decoder) -> Tensor | None:
    """The head's; None where it has few bits."""
    if decoder.architecture.tied:
        return None if isinstance(decoder.tied_head, FewBits) else decoder.tokens.weight
    return None if isinstance(decoder.head, FewBits) else decoder.head.weight


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _head(hidden: Tensor, matrix: Tensor, bias: Tensor | None, wanted: Tensor) -> Tensor:
    """Its products are library calls that write into given memory, which a compiler would undo."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else matrix.dtype
    with torch.autocast("cpu", enabled=False):
        total: Tensor = _Head.apply(hidden, matrix, bias, wanted, dtype)  # type: ignore[no-untyped-call]
    return total


class _Head(torch.autograd.Function):
    """Softmax cross-entropy of hidden [tokens, width] against wanted [tokens], summed."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, bias: Tensor | None, wanted: Tensor, dtype: torch.dtype
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        needed = any(ctx.needs_input_grad)
        inputs, weights = hidden.to(dtype), matrix.to(dtype)
        gradients = _Gradients(hidden, matrix, bias) if needed else None
        rows, vocabulary = min(ROWS, len(hidden)), len(matrix)
        room = hidden.new_empty(rows, -(-vocabulary // LINE) * LINE, dtype=dtype)[:, :vocabulary]
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            logits = room[: len(wanted[part])]  # [rows, vocabulary]
            torch.mm(inputs[part], weights.t(), out=logits)
            values = logits if dtype == torch.float32 else logits.float()
            if bias is not None:
                values += bias
            total += _losses(values, wanted[part])  # from here on `values` is the gradient of the logits
            if gradients is not None:
                gradients.add(part, values, inputs, weights)
        if gradients is not None:
            ctx.save_for_backward(*gradients.tensors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place: they are as large as the head itself, and of no use to anybody else.
        hidden, matrix, *bias = (one.mul_(upstream) for one in ctx.saved_tensors)
        return hidden, matrix, *(bias or [None]), None, None


def _losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """The sum of the losses; `logits` [rows, vocabulary] float32 become its gradient, in place."""
    scored = (wanted != UNSCORED).to(logits.dtype)[:, None]  # [rows, 1]
    place = wanted.clamp(min=0)[:, None]
    highest = logits.amax(1, keepdim=True)
    picked = logits.gather(1, place) - highest
    shares = logits.sub_(highest).exp_().sum(1, keepdim=True)
    logits.mul_(scored / shares).scatter_add_(1, place, -scored)
    return ((shares.log() - picked) * scored).sum()


class _Gradients:
    """Of the sum of all losses, part by part."""

    def __init__(self, hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
        self.hidden = torch.empty_like(hidden)
        # Written by the first part, as filling a gigabyte with zeros takes most of a second.
        self.matrix = torch.empty_like(matrix)
        self.bias = None if bias is None else torch.zeros_like(bias)

    @property
    def tensors(self) -> list[Tensor]:
        return [one for one in (self.hidden, self.matrix, self.bias) if one is not None]

    def add(self, part: slice, logits: Tensor, inputs: Tensor, weights: Tensor) -> None:
        """`logits` [rows, vocabulary] is their gradient."""
        if self.bias is not None:
            self.bias += logits.sum(0)
        first = part.start == 0
        if weights.dtype == self.matrix.dtype == self.hidden.dtype:
            torch.mm(logits, weights, out=self.hidden[part])
            self.matrix.addmm_(logits.t(), inputs[part], beta=0 if first else 1)
            return
        small = logits.to(weights.dtype)
        self.hidden[part] = small @ weights
        if first:
            self.matrix.zero_()
        self.matrix += small.t() @ inputs[part]
