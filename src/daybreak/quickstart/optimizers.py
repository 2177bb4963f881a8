"""Which optimizer moves which parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim import AdamW, Optimizer

from daybreak.model.decoder import Decoder
from daybreak.train.muon import Muon

HEAD = "head.weight"


@dataclass(frozen=True)
class Rates:
    """Learning rates at their highest."""

    matrices: float = 0.014
    """Muon's, for the matrices inside the blocks."""
    embeddings: float = 0.012
    """AdamW's, for token and position embeddings."""
    head: float = 0.012
    """AdamW's, for a head of its own."""
    vectors: float = 0.003
    """AdamW's, for norms and biases."""


def optimizers(decoder: Decoder, rates: Rates, products: torch.dtype = torch.bfloat16) -> list[Optimizer]:
    """Muon (Jordan et al. 2024), whose products are in `products`, for the matrices of the blocks, AdamW for
    everything else.

    A matrix inside a network should move by the same amount in every direction of its space; Muon makes each
    update orthogonal. Embeddings and the head are tables of rows that are rarely read, which is AdamW's case.
    """
    matrices = [parameter for parameter in decoder.blocks.parameters() if parameter.ndim == 2]
    inside = {id(parameter) for parameter in matrices}
    rest = {name: p for name, p in decoder.named_parameters() if id(p) not in inside}
    tables = [parameter for name, parameter in rest.items() if parameter.ndim == 2 and name != HEAD]
    groups = [
        {"params": tables, "lr": rates.embeddings},
        {"params": [parameter for name, parameter in rest.items() if name == HEAD], "lr": rates.head},
        {"params": [parameter for parameter in rest.values() if parameter.ndim == 1], "lr": rates.vectors},
    ]
    muon = Muon(matrices, products, lr=rates.matrices, weight_decay=0.0, momentum=0.95)
    adam = AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["highest"] = group["lr"]
    return [muon, adam]


def set_rates(chosen: Sequence[Optimizer], factor: float) -> None:
    """Every group's learning rate becomes its highest times `factor`."""
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * factor
