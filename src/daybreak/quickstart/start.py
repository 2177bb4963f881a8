"""Where training starts: with what can be counted or written down before the first step.

Blocks that do not write yet, tables that know which token follows which, a head that looks one token back,
and heads that copy what followed the last time (induction heads; Olsson et al. 2022, arXiv 2209.11895). A
small model spends most of a short run on finding these; the weights stay free to leave them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from daybreak.architecture import Rotary
from daybreak.data.windows import Ids
from daybreak.model.attention import Attention
from daybreak.model.decoder import Decoder
from daybreak.quickstart.pairs import SCALE, Tables, count_pairs, fit_pairs
from daybreak.quickstart.tied_start import TiedTables, start_tied

LOOKING_BACK = 2
"""Heads of the first block that start out looking one, two, ... tokens back."""
SHARPNESS = 20.0
"""The score of the place looked at; far from it scores are about 0."""
SIGNATURE = 32
"""Components that tell tokens apart where they are compared."""
COPYING = 2
"""Heads of the second block that copy."""
MATCH = 3.0
"""Factor on the score of two signatures."""
PULL = 3.0
"""By how much, about, a copied token's logit rises."""


def tables(decoder: Decoder, documents: Sequence[Ids], seed: int) -> Tables | None:
    """What `start` needs to know of the training text; None if the decoder has no place for it."""
    architecture = decoder.architecture
    biased = architecture.final_norm and architecture.norm == "layer" and architecture.norm_affine
    if architecture.tied or not biased or architecture.embedding_width is not None:
        return None
    counts = count_pairs(documents, architecture.vocabulary)
    return fit_pairs(counts, architecture.width, _signature_size(decoder), seed)


@torch.no_grad()
def start(decoder: Decoder, found: Tables | TiedTables | None, seed: int = 0) -> None:
    """Change freshly drawn weights in place, as far as the architecture has a place for it."""
    for name, parameter in decoder.named_parameters():
        if name.endswith((".attention.out.weight", ".mlp.down.weight")):
            parameter.zero_()
    if isinstance(found, TiedTables):
        start_tied(decoder, found, seed)
        return
    if found is not None:
        assert isinstance(decoder.final_norm.bias, Tensor)
        decoder.tokens.weight.copy_(found.embedding)
        decoder.head.weight.copy_(found.head)
        decoder.final_norm.bias.copy_(found.bias)
    if _turns(decoder):
        look_back(_attention(decoder, 0))
    if found is not None and found.free:
        copy_what_followed(decoder, found, seed)


def look_back(attention: Attention) -> None:
    """The first heads start out looking one, two, ... tokens back.

    Rotary scores depend on the distance between two tokens, so a query bias q and a key bias that is q turned
    by so many steps give every query its highest score at the key that many tokens before it, whatever the
    tokens are. Their matrices start small beside the biases.
    """
    rotary, width = attention.rotary, attention.query.out_features // attention.heads
    assert rotary is not None
    frequency = rotary.base ** (-torch.arange(0, rotary.width, 2) / rotary.width)  # [rotary width / 2]
    strength = (SHARPNESS * frequency / frequency.sum() / attention.scale).sqrt()
    for head in range(min(LOOKING_BACK, attention.heads)):
        angle = frequency * (head + 1)
        turning = slice(head * width, head * width + rotary.width)
        attention.query.bias[turning] = torch.cat([strength, torch.zeros_like(strength)])
        attention.key.bias[turning] = torch.cat([strength * angle.cos(), strength * angle.sin()])
        attention.query.weight[turning] *= 0.2
        attention.key.weight[turning] *= 0.2


def copy_what_followed(decoder: Decoder, found: Tables, seed: int) -> None:
    """Induction heads: find the last time the current token occurred, and expect what followed it there.

    The first block's first head looks one token back and writes that token's signature, a random projection
    of its embedding, into the components that the tables leave free. In the second block a query is the
    signature of the current token, a key the signature of the token before, so they agree where the token
    before was this one. What is copied from there raises its own logit: a least-squares map from embeddings
    to rows of the head.
    """
    used = decoder.architecture.width - found.free
    random = torch.randn(used, found.free, generator=torch.Generator().manual_seed(seed))
    signature = torch.linalg.qr(random)[0].T  # [free, used], orthonormal rows
    first, second = _attention(decoder, 0), _attention(decoder, 1)
    size = torch.eye(found.free)
    first.value.weight[: found.free] = 0
    first.value.weight[: found.free, :used] = signature
    first.out.weight[used:, : found.free] = SCALE * size
    into, out = _copying_map(found, used)
    width = decoder.architecture.head_width
    for head in range(min(COPYING, decoder.architecture.heads)):
        own = slice(head * width, (head + 1) * width)
        still = slice(own.stop - found.free, own.stop)  # the last components, which do not turn
        second.query.weight[own] *= 0.1
        second.key.weight[own] *= 0.1
        second.query.weight[still, :used] = math.sqrt(MATCH) * signature
        second.key.weight[still] = 0
        second.key.weight[still, used:] = math.sqrt(MATCH) * size
        part = slice(own.start, min(own.stop, used))
        second.value.weight[own] = 0
        second.value.weight[part, :used] = into[part]
        second.out.weight[:used, part] = PULL * SCALE * out[:, part]


def _copying_map(found: Tables, used: int) -> tuple[Tensor, Tensor]:
    """Two maps, [used, used] each, whose product leads from a token's normed embedding to a vector that
    raises this token's logit by about 1, the most important components first."""
    normed = functional.layer_norm(found.embedding, found.embedding.shape[-1:])[:, :used]
    rows = found.head[:, :used]
    rows = rows - found.frequency @ rows  # what all logits gain does not count
    wanted = rows / (rows.square().sum(1, keepdim=True) + 1e-3)
    weight = found.frequency.sqrt()[:, None]
    gram = (normed * weight).T @ (normed * weight) + 1e-4 * torch.eye(used)
    solution = torch.linalg.solve(gram, (normed * weight).T @ (wanted * weight))  # normed @ solution ~ wanted
    left, strengths, right = torch.linalg.svd(solution.T)
    return right, left * strengths


def _turns(decoder: Decoder) -> bool:
    """Can its attention look a fixed distance back?"""
    architecture = decoder.architecture
    rotary = architecture.positions
    return isinstance(rotary, Rotary) and rotary.pairs == "halves" and "qkv" in architecture.biases


def _signature_size(decoder: Decoder) -> int:
    """Components that the tables should leave free for `copy_what_followed`; 0 if it has no place."""
    architecture = decoder.architecture
    if not _turns(decoder) or architecture.layers < 2 or architecture.block == "post":
        return 0
    assert isinstance(architecture.positions, Rotary)
    turning = architecture.positions.width * (2 if architecture.positions.blocks else 1)
    return min(SIGNATURE, architecture.head_width - turning, architecture.width // 4)


def _attention(decoder: Decoder, layer: int) -> Attention:
    found = decoder.blocks[layer].get_submodule("attention")
    assert isinstance(found, Attention)
    return found
