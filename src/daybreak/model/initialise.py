"""Fresh weights, as a family's paper draws them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from daybreak.families.family import Initialisation
from daybreak.model.decoder import Decoder


@torch.no_grad()
def initialise(decoder: Decoder, recipe: Initialisation, seed: int = 0) -> None:
    """Normal weights with the recipe's deviations, biases 0, norms the identity; the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in decoder.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, _deviation(name, module.weight, recipe), generator=generator)
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.zero_()


def _deviation(name: str, weight: Tensor, recipe: Initialisation) -> float:
    if name in ("positions", "block_positions") and recipe.position_std is not None:
        return recipe.position_std
    std = recipe.output_std if name.endswith(recipe.scaled) else recipe.std
    return std * math.sqrt(2 / sum(weight.shape)) if recipe.xavier else std
