"""Floating-point operations of training, counted from the architecture's matrix products."""

from __future__ import annotations

from dataclasses import dataclass

from daybreak.architecture import Architecture


@dataclass(frozen=True)
class Flops:
    """What the matrix products of one token cost forwards; a multiplication and an addition are two.

    A matrix of m x n costs 2 m n per token (Kaplan et al., arXiv 2001.08361, section 2.1), attention
    4 width keys per layer: scores, and the mean of the values. As in PaLM (arXiv 2204.02311, appendix B) the
    causal mask is not deducted; a window is. Norms, softmax and activations are not counted.
    """

    blocks: int
    """The linear maps of all blocks."""
    attention: int
    """Scores and weighted means of all layers."""
    head: int
    """The head, and the projections from and to a narrower embedding."""

    @property
    def forward(self) -> int:
        return self.blocks + self.attention + self.head

    @property
    def training(self) -> int:
        """Forwards and backwards: the gradients of input and matrix cost a product each."""
        return 3 * self.forward

    @property
    def recomputed(self) -> int:
        """`training` where the blocks are computed a second time on the way back; work, not progress."""
        return self.training + self.blocks + self.attention


def flops(architecture: Architecture, length: int) -> Flops:
    """Of each token in sequences of `length` tokens."""
    a = architecture
    maps = 3 if a.gated else 2
    matrices = a.width * (a.width + 2 * a.key_width) + a.width * a.width + maps * a.width * a.inner
    keys = sum(min(length, a.window(layer) or length) for layer in range(a.layers))
    narrow = a.embedding_width or a.width
    projections = 2 * narrow * a.width if a.embedding_width is not None else 0
    return Flops(
        blocks=2 * a.layers * matrices,
        attention=4 * a.width * keys,
        head=2 * (narrow * a.vocabulary + projections),
    )
