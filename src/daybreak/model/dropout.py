"""Dropout where GPT and GPT-2 have it. A decoder has none of its own: models are read far more often than
trained, and pretraining on more text than is read twice does without.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import dropout

from daybreak.model.decoder import Decoder


def add_dropout(
    decoder: Decoder, residual: float = 0.0, embedding: float = 0.0, attention: float = 0.0
) -> None:
    """While `decoder` is in training mode, set values to zero at random from now on, with these shares.

    `residual`: what attention and MLP of each block add to the residual stream; `embedding`: what the first
    block reads; `attention`: the attention weights (Radford et al. 2018, section 4.1: 0.1 each).
    """
    blocks: Any = decoder.blocks
    for block in blocks:
        if residual:
            block.attention.register_forward_hook(_after(residual))
            block.mlp.register_forward_hook(_after(residual))
        block.attention.dropout = attention
    if embedding:
        blocks[0].register_forward_pre_hook(_before(embedding))


def _after(share: float) -> Any:
    def dropped(module: Any, inputs: Any, output: Tensor) -> Tensor:
        del inputs
        return dropout(output, share, module.training)

    return dropped


def _before(share: float) -> Any:
    def dropped(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return dropout(hidden, share, module.training), *rest

    return dropped
