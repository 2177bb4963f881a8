"""Every field of an architecture in words: what it is called, and what its value says of a model.

`describe` prints all of these sentences, `diff` those that differ. A test demands one for every field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from daybreak.architecture import Alibi, Architecture, Learned, Rotary

Room = Literal["shape", "positions", "block", "attention", "network", "embedding and head"]
"""Where `describe` groups a field."""


@dataclass(frozen=True)
class Word:
    """How one field is spoken of."""

    title: str
    room: Room
    say: Callable[[Architecture], str]
    scale: bool = False
    """The field says how large a model is; between two families it is no decision, every size has its own."""


def _positions(a: Architecture) -> str:
    if isinstance(a.positions, Learned):
        table = f"a trained vector for each of {a.context:,} positions, added to the token's"
        spare = f"; the table has {a.positions.offset} unused rows in front" if a.positions.offset else ""
        blocks = "; a second table for the place within a piece" if a.positions.blocks else ""
        return table + spare + blocks
    if isinstance(a.positions, Rotary):
        return _rotary(a.positions, a.head_width)
    assert isinstance(a.positions, Alibi)
    return "no position vectors: scores fall linearly with distance, at a slope of each head's own (ALiBi)"


def _rotary(rotary: Rotary, head_width: int) -> str:
    share = Fraction(rotary.width, head_width)
    blocks = (
        f"; the next {rotary.width} by the place within a piece that fills a blank" if rotary.blocks else ""
    )
    rounded = "; frequencies rounded to float16" if rotary.half_frequencies else ""
    part = "all" if share == 1 else f"{rotary.width} ({share})"
    planes = {"neighbours": "neighbours (2j, 2j + 1)", "halves": f"halves (j, j + {rotary.width // 2})"}
    return (
        f"queries and keys turn by an angle that grows with the position: {part} of each head's {head_width} "
        f"components, paired as {planes[rotary.pairs]}, base {rotary.base:,g}{blocks}{rounded}"
    )


def _heads(a: Architecture) -> str:
    return f"{a.heads:,} of {a.head_width:,} components each"


def _key_heads(a: Architecture) -> str:
    count = a.key_heads or a.heads
    if count == a.heads:
        return f"every head has its own: {count:,}"
    share = a.heads // count
    return f"{count:,} heads of keys and values, each shared by {share:,} of the {a.heads:,} of queries"


def _norm(a: Architecture) -> str:
    if a.norm == "rms":
        return "RMSNorm: divided by the root of the mean square"
    return "LayerNorm: mean subtracted, divided by the standard deviation"


def _norm_weights(a: Architecture) -> str:
    if not a.norm_affine:
        return "norms have no weights of their own"
    return "norms have a gain and a bias" if a.norm == "layer" else "norms have a gain and no bias"


def _blanks(a: Architecture) -> str:
    if a.blanks is None:
        return "none: text is read and written from left to right"
    marks = f"[MASK] {a.blanks.mask}, [gMASK] {a.blanks.rest}"
    marks += "" if a.blanks.sentence is None else f", [sMASK] {a.blanks.sentence}"
    moves = "run on after [gMASK]" if a.blanks.runs_on else "stand still at the blank"
    return (
        "a context with blanks is read in both directions, the pieces that fill them are written after it; "
        f"their positions {moves}; tokens {marks}, start {a.blanks.start}, end {a.blanks.end}"
    )


def _embedding_width(a: Architecture) -> str:
    if a.embedding_width is None:
        return "as wide as the stream"
    return (
        f"{a.embedding_width:,} wide, with a projection to the stream's {a.width:,} and back before the head"
    )


def _windows(a: Architecture) -> str:
    windows = a.spelled_out().windows
    period = next(n for n in range(1, len(windows) + 1) if _repeats(windows, n))
    spoken = [
        "all tokens" if window is None else f"the latest {window:,} tokens" for window in windows[:period]
    ]
    if len(spoken) == 1:
        return f"every layer sees {spoken[0]}"
    return "layer by layer in turn: " + ", ".join(spoken)


def _repeats(values: Sequence[int | None], period: int) -> bool:
    return all(value == values[i % period] for i, value in enumerate(values))


def _biases(a: Architecture) -> str:
    maps = {
        "qkv": "queries, keys and values",
        "out": "attention's output",
        "mlp": "the MLP",
        "head": "the head",
    }
    having = [words for name, words in maps.items() if name in a.biases]
    if not having:
        return "no linear map has a bias"
    return "biases in " + (", ".join(having[:-1]) + " and " if len(having) > 1 else "") + having[-1]


def _shared_norm(a: Architecture) -> str:
    if a.block != "parallel":
        return "attention and MLP have a norm each"
    if a.shared_norm:
        return "attention and MLP read one and the same norm"
    return "attention and MLP read a norm each, both of the block's input"


def _residual_scale(a: Architecture) -> str:
    if a.residual_scale == 1:
        return "what is carried past a sublayer is not scaled"
    return f"what is carried past a sublayer counts {a.residual_scale:g} times"


_BLOCKS = {
    "pre": "the norm stands before each sublayer: x + f(norm(x)), attention first, then the MLP",
    "post": "the norm follows each sublayer: norm(x + f(x)), attention first, then the MLP",
    "parallel": "attention and MLP side by side: x + attention(norm(x)) + mlp(norm(x))",
}
_ACTIVATIONS = {
    "gelu": "GELU, exact (erf)",
    "gelu_tanh": "GELU, in its tanh approximation",
    "relu": "ReLU",
    "silu": "SiLU",
}
_RESIDUALS = {
    "input": "what is carried past a sublayer is its input before the norm",
    "normed": "what is carried past a sublayer is its normed input",
}

WORDS: dict[str, Word] = {
    "vocabulary": Word("vocabulary", "shape", lambda a: f"{a.vocabulary:,} token embeddings"),
    "context": Word("context", "shape", lambda a: f"{a.context:,} tokens in training"),
    "layers": Word("layers", "shape", lambda a: f"{a.layers:,}", scale=True),
    "width": Word("width", "shape", lambda a: f"{a.width:,} components in the residual stream", scale=True),
    "heads": Word("heads", "shape", _heads, scale=True),
    "key_heads": Word("heads of keys", "attention", _key_heads, scale=True),
    "inner": Word(
        "inner width",
        "shape",
        lambda a: f"{a.inner:,} in the MLP, {a.inner / a.width:g} × the width",
        scale=True,
    ),
    "positions": Word("positions", "positions", _positions),
    "block": Word("block", "block", lambda a: _BLOCKS[a.block]),
    "shared_norm": Word("norms of a block", "block", _shared_norm),
    "residual": Word("residual", "block", lambda a: _RESIDUALS[a.residual]),
    "residual_scale": Word("residual scale", "block", _residual_scale),
    "windows": Word("sight", "attention", _windows),
    "scaled_scores": Word(
        "score scale",
        "attention",
        lambda a: "divided by √(head width)" if a.scaled_scores else "not scaled: queries · keys as they are",
    ),
    "layer_scaled_scores": Word(
        "score scale by layer",
        "attention",
        lambda a: (
            "divided by the layer's number, too" if a.layer_scaled_scores else "the same in every layer"
        ),
    ),
    "activation": Word("activation", "network", lambda a: _ACTIVATIONS[a.activation]),
    "gated": Word(
        "gate",
        "network",
        lambda a: "a second map's activation multiplies the MLP's inner components" if a.gated else "no gate",
    ),
    "norm": Word("norm", "network", _norm),
    "norm_eps": Word("norm epsilon", "network", lambda a: f"{a.norm_eps:g}".replace("e-0", "e-")),
    "norm_affine": Word("norm weights", "network", _norm_weights),
    "biases": Word("biases", "network", _biases),
    "embedding_width": Word("token embedding", "embedding and head", _embedding_width),
    "embedding_norm": Word(
        "embedding norm",
        "embedding and head",
        lambda a: "a norm right after the embedding" if a.embedding_norm else "no norm after the embedding",
    ),
    "final_norm": Word(
        "final norm",
        "embedding and head",
        lambda a: "a norm before the head" if a.final_norm else "no norm before the head",
    ),
    "blanks": Word("blanks", "positions", _blanks),
    "tied": Word(
        "head",
        "embedding and head",
        lambda a: "the token embedding again (tied)" if a.tied else "a matrix of its own (untied)",
    ),
}
"""In the order in which `describe` prints them."""
