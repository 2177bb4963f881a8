"""How many parameters an architecture has, and what they and the cache weigh: arithmetic, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from daybreak.architecture import Architecture, Learned

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
"""Bits per weight; the scales that quantised weights need come on top (a few percent)."""


@dataclass(frozen=True)
class Count:
    """Parameters by what they do. Tied matrices are counted once, as `embedding`."""

    embedding: int
    """Token table, and the projections to and from a narrower one."""
    positions: int
    attention: int
    mlp: int
    norms: int
    head: int
    """The head's own matrix and bias; 0 where it is tied."""

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.attention + self.mlp + self.norms + self.head

    @property
    def non_embedding(self) -> int:
        """All but token tables, positions and head, as scaling laws count (arXiv 2001.08361, section 1.3)."""
        return self.attention + self.mlp + self.norms


def count(architecture: Architecture) -> int:
    """All parameters, tied matrices once; what a decoder of this architecture holds."""
    return breakdown(architecture).total


def breakdown(architecture: Architecture) -> Count:
    """The parameters by what they do."""
    a = architecture
    narrow = a.embedding_width or a.width
    projections = 2 * narrow * a.width if a.embedding_width is not None else 0
    projected = a.width + 2 * a.key_width  # queries, keys and values
    attention = (a.width + ("qkv" in a.biases)) * projected + (a.width + ("out" in a.biases)) * a.width
    ups = 2 if a.gated else 1
    mlp = (ups + 1) * a.width * a.inner + ("mlp" in a.biases) * (ups * a.inner + a.width)
    return Count(
        embedding=a.vocabulary * narrow + projections,
        positions=_tables(a.positions, a.context) * a.width if isinstance(a.positions, Learned) else 0,
        attention=a.layers * attention,
        mlp=a.layers * mlp,
        norms=_norms(a) * (2 if a.norm == "layer" else 1) * a.width * a.norm_affine,
        head=0 if a.tied else a.vocabulary * (narrow + ("head" in a.biases)),
    )


def _tables(positions: Learned, context: int) -> int:
    """Rows of the position tables."""
    return 2 * (context + 1) if positions.blocks else context + positions.offset


def _norms(architecture: Architecture) -> int:
    per_layer = 1 if architecture.shared_norm else 2
    return architecture.layers * per_layer + architecture.embedding_norm + architecture.final_norm


def weight_bytes(architecture: Architecture, dtype: str) -> int:
    """Bytes of all weights held in `dtype`, a key of `BITS`."""
    return -(-count(architecture) * BITS[dtype] // 8)


def packed_bytes(architecture: Architecture, bits: int) -> int:
    """Bytes of weights of which only the layers' matrices are packed to so many bits, each row with a scale
    in float16; tables, norms and biases stay in float16 (GLM-130B, arXiv 2210.02414, section 4).
    """
    a = architecture
    ups = 2 if a.gated else 1
    projected = a.width + 2 * a.key_width
    matrices = a.layers * ((projected + a.width) * a.width + (ups + 1) * a.width * a.inner)
    scales = a.layers * (projected + a.width + ups * a.inner + a.width)
    return matrices * bits // 8 + 2 * (count(a) - matrices + scales)


def cache_bytes(architecture: Architecture, tokens: int, dtype: str) -> int:
    """Bytes of the keys and values of `tokens` tokens of one text, all layers, in `dtype`."""
    return 2 * architecture.layers * architecture.key_width * tokens * BITS[dtype] // 8
