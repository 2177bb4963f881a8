"""Where training starts for designs with blanks, a tied head and trained vectors for positions.

The same that `daybreak.quickstart.start` writes down for others, in the places that this design has: the
first MLP leads from a token to those that follow it, position vectors are waves by which heads of the first
block look one place back, and heads of the second block copy what followed the last time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from daybreak.architecture import Architecture, Learned
from daybreak.model.attention import Attention
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch
from daybreak.quickstart.pairs import ITERATIONS, SCALE, fit_pairs

SIGNATURE = 24
"""Components that tell tokens apart where they are compared, for each of two kinds of predecessor."""
WAVES = 8
"""Of positions in the text; each takes two components."""
BLOCK_WAVES = 6
"""Of places in a piece."""
FASTEST, SLOWEST = 2.0, 0.025
"""Radians per place of the first wave and the last one."""
SHARPNESS = 20.0
"""The score of the place looked at; the next ones' are below 5."""
SAME_BLANK = 10.0
"""What a key of the query's own piece scores beside that."""
SIDE = 6.0
"""By how much keys of the context, or those of pieces, are preferred."""
MATCH = 3.0
"""Factor on the score of two signatures."""
PULL = 3.0
"""By how much, about, a copied token's logit rises."""
OTHERS = 2 * SIGNATURE + 2 * WAVES + 2 * BLOCK_WAVES + 2
"""Components that do not belong to the token: two signatures, waves, and whether it stands in a piece."""


@dataclass(frozen=True, eq=False)
class TiedTables:
    """What is fitted before training."""

    embedding: Tensor
    """[vocabulary, used]: as it stands in the token embedding."""
    follows: Tensor
    """[used, used]: from the normed embedding to what the first MLP adds."""
    gain: Tensor
    """[used], the final norm's"""
    bias: Tensor
    """[used], the final norm's"""
    frequency: Tensor
    """[vocabulary]"""


def has_place(architecture: Architecture) -> bool:
    """Is it such a design, and wide enough?"""
    return (
        architecture.tied
        and architecture.blanks is not None
        and isinstance(architecture.positions, Learned)
        and architecture.positions.blocks
        and (architecture.block, architecture.norm, architecture.residual) == ("pre", "layer", "input")
        and architecture.residual_scale == 1.0
        and not architecture.gated
        and architecture.final_norm
        and architecture.embedding_width is None
        and architecture.layers >= 2
        and architecture.heads >= 2
        and architecture.head_width >= 2 * WAVES + 2 * BLOCK_WAVES
        and architecture.width >= 2 * OTHERS
        and architecture.inner >= 2 * (architecture.width - OTHERS)
        and {"qkv", "out", "mlp"} <= architecture.biases
    )


@torch.no_grad()
def fit_tied(counts: Tensor, width: int, seed: int, iterations: int = ITERATIONS) -> TiedTables:
    """Tables that predict from the last token as well as they can; `counts` [vocabulary, vocabulary].

    First the two of a head of its own, half as wide: what a token is, and what it is expected by. They become
    the two halves of the tied embedding, and what leads from one to the other the first guess at `follows`.
    """
    used = width - OTHERS
    half = used // 2
    apart = fit_pairs(counts, half, 0, seed, iterations)
    strength = float(apart.head.std()) / SCALE
    embedding = torch.cat([apart.embedding * (SCALE / apart.embedding.std()), apart.head / strength], 1)
    gain = torch.cat([torch.zeros(half), torch.full((half,), strength)])
    bias = functional.pad(apart.bias * strength, (half, 0))
    follows = torch.zeros(2 * half, 2 * half)
    follows[:half, half:] = SCALE * torch.eye(half)
    follows[half:, half:] = -SCALE * torch.eye(half)
    return TiedTables(embedding, follows, gain, bias, apart.frequency)


def after_mlp(embedding: Tensor, follows: Tensor) -> Tensor:
    """The token's components behind the second MLP, [vocabulary, used]."""
    return embedding + _normed(embedding) @ follows


def _normed(part: Tensor) -> Tensor:
    """The token's components behind a norm of the whole stream, in which the others are waves and
    signatures of the usual size."""
    others = SCALE * (1.0 - 2.0 * (torch.arange(OTHERS) % 2))
    whole = torch.cat([part, others.expand(len(part), OTHERS)], dim=1)
    return functional.layer_norm(whole, whole.shape[-1:])[:, : part.shape[1]]


def count_targets(batches: Iterable[Batch], vocabulary: int) -> Tensor:
    """How often each token is to be predicted from each other one, [vocabulary, vocabulary] float32."""
    counts = torch.zeros(vocabulary**2)
    for batch in batches:
        scored = batch.targets != UNSCORED
        pairs = batch.reading.tokens[scored] * vocabulary + batch.targets[scored]
        counts += torch.bincount(pairs, minlength=vocabulary**2)
    return counts.view(vocabulary, vocabulary)


@torch.no_grad()
def start_tied(decoder: Decoder, found: TiedTables, seed: int = 0) -> None:
    """Change freshly drawn weights in place."""
    used = found.embedding.shape[1]
    _, _, of_places, of_blocks = _parts(used)
    waves, block_waves = _waves(WAVES), _waves(BLOCK_WAVES)
    decoder.tokens.weight.zero_()
    decoder.tokens.weight[:, :used] = found.embedding
    assert isinstance(decoder.final_norm.weight, Tensor) and isinstance(decoder.final_norm.bias, Tensor)
    decoder.final_norm.weight[:used] = found.gain
    decoder.final_norm.bias[:used] = found.bias
    places = torch.arange(len(decoder.positions.weight))
    decoder.positions.weight.zero_()
    decoder.positions.weight[:, of_places] = _at(places, waves)
    decoder.block_positions.weight.zero_()
    decoder.block_positions.weight[1:, of_blocks] = _at(places[1:], block_waves)
    decoder.block_positions.weight[:, -1] = SCALE
    decoder.block_positions.weight[0, -1] = -SCALE
    _let_follow(decoder.blocks[1].get_submodule("mlp"), found.follows)
    random = torch.randn(used, SIGNATURE, generator=torch.Generator().manual_seed(seed))
    signature = torch.linalg.qr(random)[0].T  # [SIGNATURE, used], orthonormal rows
    _look_back(_attention(decoder, 0), used, signature)
    _copy(_attention(decoder, 1), found, signature)


def _parts(used: int) -> list[slice]:
    """Where the others stand: signatures of the token before in the text, and in the piece; waves of both
    rows of positions. The last component says whether a token stands in a piece."""
    sizes = [SIGNATURE, SIGNATURE, 2 * WAVES, 2 * BLOCK_WAVES]
    ends = [used + sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _waves(count: int) -> Tensor:
    """Radians per place, [count]."""
    return FASTEST * (SLOWEST / FASTEST) ** (torch.arange(count) / (count - 1))


def _at(places: Tensor, waves: Tensor) -> Tensor:
    """[places, 2 * waves]: the waves at these places, in the stream's usual size."""
    angles = places[:, None] * waves
    return math.sqrt(2) * SCALE * torch.cat([angles.cos(), angles.sin()], dim=1)


def _let_follow(mlp: torch.nn.Module, follows: Tensor) -> None:
    """An exactly linear map: every activation here has f(x) - f(-x) = x, so each component gets two units."""
    used = len(follows)
    up, down = mlp.get_submodule("up"), mlp.get_submodule("down")
    assert isinstance(up, torch.nn.Linear) and isinstance(down, torch.nn.Linear)
    up.weight[: 2 * used] = 0
    up.weight[:used, :used] = torch.eye(used)
    up.weight[used : 2 * used, :used] = -torch.eye(used)
    down.weight[:used, :used] = follows.T
    down.weight[:used, used : 2 * used] = -follows.T


def _look_back(attention: Attention, used: int, signature: Tensor) -> None:
    """The first head looks one place back in the text, the second one in the own piece; what stands there
    leaves its signature."""
    before, inside, places, blocks = _parts(used)
    width = attention.head_width
    for head, to in enumerate((before, inside)):
        own = slice(head * width, head * width + 2 * WAVES + 2 * BLOCK_WAVES)
        query, key = torch.zeros(2, own.stop - own.start, attention.query.in_features)
        in_text, in_piece = slice(0, 2 * WAVES), slice(2 * WAVES, None)
        key[in_text, places], key[in_piece, blocks] = torch.eye(2 * WAVES), torch.eye(2 * BLOCK_WAVES)
        if head == 0:
            query[in_text, places] = _turned(_waves(WAVES), SHARPNESS / attention.scale)
        else:
            query[in_text, places] = torch.eye(2 * WAVES) * SAME_BLANK / attention.scale / (2 * WAVES)
            query[in_piece, blocks] = _turned(_waves(BLOCK_WAVES), SHARPNESS / attention.scale)
        attention.query.weight[own], attention.key.weight[own] = query, key
        value = slice(head * width, head * width + SIGNATURE)
        attention.value.weight[value] = 0
        attention.value.weight[value, :used] = signature
        attention.out.weight[to, value] = SCALE * torch.eye(SIGNATURE)


def _turned(waves: Tensor, score: float) -> Tensor:
    """[2 waves, 2 waves]: from the waves at a place to those one place before, so strong that their product
    with these is `score`."""
    share = waves.sqrt() / waves.sqrt().sum() * score / 2
    cosine, sine = torch.diag(share * waves.cos()), torch.diag(share * waves.sin())
    return torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)])


def _copy(attention: Attention, found: TiedTables, signature: Tensor) -> None:
    """Two heads look for a token whose predecessor is the current one, one in the context and one in pieces,
    and make that token likelier."""
    used, width = found.embedding.shape[1], attention.head_width
    half, size = used // 2, min(used // 2, width)
    rows = found.embedding[:, half:] - found.frequency @ found.embedding[:, half:]
    wanted = rows / (rows.square().sum(1, keepdim=True) + 1e-3)
    normed = _normed(found.embedding)[:, half:]
    weight = found.frequency.sqrt()[:, None]
    gram = (normed * weight).T @ (normed * weight) + 1e-4 * torch.eye(half)
    solution = torch.linalg.solve(gram, (normed * weight).T @ (wanted * weight))  # normed @ solution ~ wanted
    left, strengths, right = torch.linalg.svd(solution.T)
    strength = PULL * SCALE / float(found.gain[-1])
    for head, part in enumerate(_parts(used)[:2]):
        own = slice(head * width, (head + 1) * width)
        compared = slice(own.start, own.start + SIGNATURE)
        attention.query.weight[own] *= 0.1
        attention.key.weight[own] *= 0.1
        attention.query.weight[compared, :used] = math.sqrt(MATCH) * signature
        attention.key.weight[compared] = 0
        attention.key.weight[compared, part] = math.sqrt(MATCH) * torch.eye(SIGNATURE)
        attention.query.bias[own.stop - 1] = SIDE / attention.scale / 2
        attention.key.weight[own.stop - 1] = 0
        attention.key.weight[own.stop - 1, -1] = 1.0 if head else -1.0
        value = slice(own.start, own.start + size)
        attention.value.weight[value] = 0
        attention.value.weight[value, half:used] = right[:size]
        attention.out.weight[:half, value] = strength * (left * strengths)[:, :size]


def _attention(decoder: Decoder, layer: int) -> Attention:
    found = decoder.blocks[layer].get_submodule("attention")
    assert isinstance(found, Attention)
    return found
