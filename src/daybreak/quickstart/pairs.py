"""The best model without blocks: which token follows which, counted and fitted before training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from daybreak.data.windows import Ids

ITERATIONS = 60
RATE = 0.03
SCALE = 0.3
"""Standard deviation of the embedding. The final norm takes it out again, so only the blocks feel it."""
BIAS = 5.0
"""Length of the final norm's bias."""
ROWS = 512
"""Tokens predicted from at once: their logits stay in the cache."""


@dataclass(frozen=True, eq=False)
class Tables:
    """An embedding and a head that predict from the last token alone, as well as that can be done."""

    embedding: Tensor
    """[vocabulary, width]"""
    head: Tensor
    """[vocabulary, width]"""
    bias: Tensor
    """[width], the final norm's"""
    frequency: Tensor
    """[vocabulary], shares of the training text"""
    free: int
    """The last components of embedding, head and bias that are 0, left for the blocks to use."""


def count_pairs(documents: Sequence[Ids], vocabulary: int) -> Tensor:
    """How often each token follows each other one, [vocabulary, vocabulary] float32."""
    pairs = [ids[:-1].astype(np.int64) * vocabulary + ids[1:] for ids in documents]
    counts = np.bincount(np.concatenate(pairs), minlength=vocabulary**2)
    return torch.from_numpy(counts.reshape(vocabulary, vocabulary).astype(np.float32))


@torch.no_grad()
def fit_pairs(counts: Tensor, width: int, free: int, seed: int, iterations: int = ITERATIONS) -> Tables:
    """Tables for `counts` [vocabulary, vocabulary].

    All that a model without blocks can learn of a text stands in its counts of pairs, and its exact gradient
    over the whole text costs as much as one step of training. Adam, with the gradient of
    softmax((norm(E) + b) H^T) written out.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary, used = counts.shape[0], width - free
    joint = counts / counts.sum()
    frequency = (counts.sum(0) + 1) / (counts.sum() + vocabulary)
    bias = torch.randn(used, generator=generator)
    bias *= BIAS / bias.norm()
    embedding = torch.randn(vocabulary, used, generator=generator)
    # The head has no bias of its own: frequencies ride on the norm's.
    head = torch.outer(frequency.log(), bias / BIAS**2)
    adam = torch.optim.Adam([embedding, head], lr=RATE, betas=(0.9, 0.95), eps=1e-12)
    for iteration in range(iterations):
        adam.param_groups[0]["lr"] = RATE * (1 - iteration / iterations)
        leaf = embedding.detach().requires_grad_()
        with torch.enable_grad():
            hidden = _normed(leaf, free) + bias  # [vocabulary, used]
        at_hidden, head.grad = _gradients(hidden.detach(), head, joint)
        (embedding.grad,) = torch.autograd.grad(hidden, leaf, at_hidden)
        adam.step()
    embedding *= SCALE / embedding.std()
    embedding, head, bias = (functional.pad(table, (0, free)) for table in (embedding, head, bias))
    return Tables(embedding, head, bias, frequency, free)


def _normed(embedding: Tensor, free: int) -> Tensor:
    whole = functional.pad(embedding, (0, free))
    return functional.layer_norm(whole, whole.shape[-1:])[:, : embedding.shape[1]]


def _gradients(hidden: Tensor, head: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Of the cross-entropy in `hidden` and `head`, both [vocabulary, used]; `joint` holds shares of pairs."""
    low, low_head = hidden.to(torch.bfloat16), head.to(torch.bfloat16)
    at_hidden, at_head = torch.empty_like(hidden), torch.zeros_like(head)
    for first in range(0, len(hidden), ROWS):
        rows = slice(first, first + ROWS)
        predicted = torch.softmax((low[rows] @ low_head.T).float(), -1)  # [rows, vocabulary]
        wanted = joint[rows]
        error = predicted.mul_(wanted.sum(1, keepdim=True)).sub_(wanted).to(torch.bfloat16)
        at_hidden[rows] = (error @ low_head).float()
        at_head += error.T @ low[rows]
    return at_hidden, at_head
