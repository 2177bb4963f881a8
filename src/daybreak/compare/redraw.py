"""Weights drawn so that nothing hides."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def redraw(model: nn.Module, seed: int) -> None:
    """Every parameter anew, biases and norms too: at zero biases and unit gains half of all mistakes are
    invisible.

    Matrices get a gain of about one per layer, so that no part of the network drowns in another.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {
        id(module.weight)
        for module in model.modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    }
    for parameter in model.parameters():
        if id(parameter) in norms:
            parameter.normal_(1.0, 0.3, generator=generator)
        elif parameter.dim() == 1:
            parameter.normal_(0.0, 0.3, generator=generator)
        else:
            parameter.normal_(0.0, 0.15, generator=generator)
