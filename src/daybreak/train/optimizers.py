"""Which optimizer moves which parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from daybreak.model.decoder import Decoder
from daybreak.train.settings import OptimizerSettings


def optimizers(
    decoder: Decoder, settings: OptimizerSettings, products: torch.dtype = torch.bfloat16
) -> list[Optimizer]:
    """AdamW for all, or Muon (Jordan et al. 2024) for the matrices of the blocks and AdamW for the rest.

    Matrices and embeddings decay, norms and biases do not. `products` is the dtype of Muon's.
    """
    straighten(decoder.parameters())
    named = dict(decoder.named_parameters())
    inside = set[str]()
    if settings.name == "muon":
        inside = {name for name, one in named.items() if name.startswith("blocks.") and one.ndim == 2}
    rest = [one for name, one in named.items() if name not in inside]
    adam = AdamW(
        _groups(rest, settings.weight_decay),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
    found: list[Optimizer] = [adam]
    if inside:
        from daybreak.train.muon import Muon

        matrices = [named[name] for name in named if name in inside]
        decay = settings.weight_decay
        found.append(Muon(matrices, products, lr=settings.muon_lr, weight_decay=decay, momentum=0.95))
    return found


@torch.no_grad()
def straighten(parameters: Iterable[Tensor]) -> None:
    """Have every parameter lie in memory row by row, in place; before its first gradient and optimizer.

    Matrices that a checkpoint stores turned or fused are loaded as views of the file. torch's fused
    optimizers go through the memory of a parameter, its gradient and its state side by side (on the CPU,
    torch 2.13), and where these do not lie alike they move each number by the gradient of another.
    """
    for one in parameters:
        if not one.is_contiguous():
            one.data = one.data.contiguous()


def set_options(chosen: Sequence[Optimizer], settings: OptimizerSettings) -> None:
    """Give optimizers that were read from a checkpoint the options that `settings` say now."""
    for optimizer in chosen:
        for group in optimizer.param_groups:
            matrices = group["params"] and group["params"][0].ndim >= 2
            group["weight_decay"] = settings.weight_decay if matrices else 0.0
            if isinstance(optimizer, AdamW):
                group["betas"], group["eps"] = (settings.beta1, settings.beta2), settings.eps


def highest_rates(settings: OptimizerSettings) -> list[float]:
    """Of each of `optimizers`, before schedule and roll-backs."""
    return [settings.lr] if settings.name == "adamw" else [settings.lr, settings.muon_lr]


def set_rates(chosen: Sequence[Optimizer], highest: Sequence[float], factor: float) -> None:
    """Every optimizer's learning rate becomes its highest times `factor`."""
    for optimizer, rate in zip(chosen, highest, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def _groups(parameters: Iterable[Tensor], decay: float) -> list[dict[str, Any]]:
    every = list(parameters)
    groups = [
        {"params": [one for one in every if one.ndim >= 2], "weight_decay": decay},
        {"params": [one for one in every if one.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
