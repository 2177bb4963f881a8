"""Muon (Jordan 2024), also for matrices that are cut over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim
from torch.distributed.tensor import DTensor, Replicate
from torch.optim._muon import _adjust_lr


class Muon(optim.Muon):
    """torch's Muon, with every matrix put together before it is orthogonalised, in products of any dtype.

    Torch's own step takes DTensors, too, but multiplies the parts where they lie. Its products are in
    bfloat16, so that their order shows: after one step, weights differ from those of one process by up to a
    fifth of what they moved. Here momentum and weights stay cut, and each process orthogonalises the whole
    matrix and takes its own part of the result: once more memory for one matrix, and the same numbers
    everywhere.

    A processor without bfloat16 takes many times as long for such products as for float32's: say `products`.
    """

    def __init__(
        self, parameters: Iterable[Tensor], products: torch.dtype = torch.bfloat16, **options: Any
    ) -> None:
        super().__init__(parameters, **options)
        self._products = products

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
            self._init_group(group, *found)
            for matrix, gradient, momentum in zip(*found, strict=True):
                _move(matrix, gradient, momentum, group, self._products)
        return loss


def _move(
    matrix: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any], products: torch.dtype
) -> None:
    """One step of one matrix: torch's own, but for the gathering and the dtype."""
    beta, rate = group["momentum"], float(group["lr"])
    momentum.lerp_(gradient, 1 - beta)
    update = gradient.lerp(momentum, beta) if group["nesterov"] else momentum
    whole = update.full_tensor() if isinstance(update, DTensor) else update
    direction = _orthogonal(whole.to(products), group["ns_coefficients"], group["ns_steps"], group["eps"])
    if isinstance(matrix, DTensor):
        direction = _like(direction, matrix)
    matrix.mul_(1 - rate * group["weight_decay"])
    matrix.add_(direction, alpha=-_adjust_lr(rate, group["adjust_lr_fn"], matrix.shape))


def _orthogonal(matrix: Tensor, factors: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly the orthogonal factor of `matrix`: its singular values come to lie around 1, by a polynomial of
    degree five that is applied `steps` times (Newton-Schulz; Jordan 2024). In `matrix`'s dtype."""
    tall = matrix.size(0) > matrix.size(1)
    found = matrix.mT if tall else matrix
    found = found / found.norm().clamp(min=eps)  # no singular value is above 1
    first, third, fifth = factors
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), found, beta=first)
    return found.mT if tall else found


def _like(whole: Tensor, matrix: DTensor) -> DTensor:
    """This process's part of `whole`, cut as `matrix` is; nothing travels."""
    mesh = matrix.device_mesh
    same = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same.redistribute(placements=matrix.placements)
