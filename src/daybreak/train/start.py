"""Where training starts: tables that know which token follows which, heads that look at the tokens just
before, and blocks that do not write yet.

What takes a small model half of a short run to find out can be counted, or written down, before the first
step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from daybreak.architecture import Rotary
from daybreak.data.windows import Ids
from daybreak.model.attention import Attention
from daybreak.model.decoder import Decoder

ITERATIONS = 60
RATE = 0.03
SCALE = 0.3
"""Standard deviation of the embedding afterwards; the final norm takes the scale out again, so only the
blocks feel it."""
BIAS = 5.0
"""Length of the final norm's bias."""
SHARPNESS = 10.0
"""By how much the score of the place looked at stands above the mean over all places."""

Tables = tuple[Tensor, Tensor, Tensor]
"""Embedding, head (both [vocabulary, width]), and the final norm's bias [width]."""


def tables(decoder: Decoder, documents: Sequence[Ids], seed: int) -> Tables | None:
    """What `start` needs to know of the training text; None if the decoder has no place for it."""
    architecture = decoder.architecture
    if architecture.tied or not architecture.final_norm or architecture.embedding_width is not None:
        return None
    return fit_pairs(count_pairs(documents, architecture.vocabulary), architecture.width, seed)


@torch.no_grad()
def start(decoder: Decoder, found: Tables | None) -> None:
    """Change freshly drawn weights in place, as far as the architecture has a place for it."""
    silence_blocks(decoder)
    look_back(decoder)
    if found is not None:
        embedding, head, bias = found
        decoder.tokens.weight.copy_(embedding)
        decoder.head.weight.copy_(head)
        decoder.final_norm.bias.copy_(bias)


def silence_blocks(decoder: Decoder) -> None:
    """Every map that writes into the residual stream becomes 0: at the start the network is its two
    tables."""
    for name, parameter in decoder.named_parameters():
        if name.endswith((".attention.out.weight", ".mlp.down.weight")):
            parameter.zero_()


def look_back(decoder: Decoder, heads: int = 2) -> None:
    """The first `heads` of the first block start out looking one, two, ... tokens back.

    Rotary scores depend on the distance between two tokens, so a query bias q and a key bias that is q turned
    by `distance` steps give every query its highest score at the key that many tokens before it, whatever the
    tokens are. Their matrices start small beside the biases.
    """
    rotary, width = decoder.architecture.positions, decoder.architecture.head_width
    if not isinstance(rotary, Rotary) or rotary.pairs != "halves" or "qkv" not in decoder.architecture.biases:
        return
    attention = decoder.blocks[0].get_submodule("attention")
    assert isinstance(attention, Attention)
    frequency = rotary.base ** (-torch.arange(0, rotary.width, 2) / rotary.width)  # [rotary width / 2]
    strength = (SHARPNESS * frequency / frequency.sum() / attention.scale).sqrt()
    for head in range(min(heads, decoder.architecture.heads)):
        angle = frequency * (head + 1)
        turning = slice(head * width, head * width + rotary.width)
        attention.query.bias[turning] = torch.cat([strength, torch.zeros_like(strength)])
        attention.key.bias[turning] = torch.cat([strength * angle.cos(), strength * angle.sin()])
        attention.query.weight[turning] *= 0.2
        attention.key.weight[turning] *= 0.2


def count_pairs(documents: Sequence[Ids], vocabulary: int) -> Tensor:
    """How often each token follows each other one, [vocabulary, vocabulary] float32."""
    pairs = [ids[:-1].astype(np.int64) * vocabulary + ids[1:] for ids in documents]
    counts = np.bincount(np.concatenate(pairs), minlength=vocabulary**2)
    return torch.from_numpy(counts.reshape(vocabulary, vocabulary).astype(np.float32))


@torch.no_grad()
def fit_pairs(counts: Tensor, width: int, seed: int, iterations: int = ITERATIONS) -> Tables:
    """The best model without blocks.

    Such a model predicts from the last token alone, so all it can learn stands in `counts` [vocabulary,
    vocabulary], and its exact gradient over the whole text costs as much as one training step. Adam, with the
    gradient of softmax((norm(E) + b) H^T) written out.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = counts.shape[0]
    joint = counts / counts.sum()
    marginal = joint.sum(1, keepdim=True)  # [vocabulary, 1]: how often a token is the one to predict from
    frequency = ((counts.sum(0) + 1) / (counts.sum() + vocabulary)).log()  # [vocabulary]
    bias = torch.randn(width, generator=generator)
    bias *= BIAS / bias.norm()
    embedding = torch.randn(vocabulary, width, generator=generator)
    head = torch.outer(frequency, bias / BIAS**2)  # it has no bias of its own: frequencies ride on the norm's
    adam = torch.optim.Adam([embedding, head], lr=RATE, betas=(0.9, 0.95), eps=1e-12)
    for iteration in range(iterations):
        adam.param_groups[0]["lr"] = RATE * (1 - iteration / iterations)
        leaf = embedding.detach().requires_grad_()
        with torch.enable_grad():
            hidden = functional.layer_norm(leaf, (width,)) + bias  # [vocabulary, width]
        error = torch.softmax(_product(hidden, head.T), -1).mul_(marginal).sub_(joint)  # d loss / d logits
        (embedding.grad,) = torch.autograd.grad(hidden, leaf, _product(error, head))
        head.grad = _product(error.T, hidden)
        adam.step()
    return embedding * (SCALE / embedding.std()), head, bias


def _product(first: Tensor, second: Tensor) -> Tensor:
    return (first.to(torch.bfloat16) @ second.to(torch.bfloat16)).float()
