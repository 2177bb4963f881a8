"""Muon (Jordan 2024), also for matrices that are cut over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim
from torch.distributed.tensor import DTensor, Replicate
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


class Muon(optim.Muon):
    """torch's Muon, with every matrix put together before it is orthogonalised.

    Torch's own step takes DTensors, too, but multiplies the parts where they lie. Its products are in
    bfloat16, so that their order shows: after one step, weights differ from those of one process by up to a
    fifth of what they moved. Here momentum and weights stay cut, and each process orthogonalises the whole
    matrix and takes its own part of the result: once more memory for one matrix, and the same numbers
    everywhere.
    """

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
                _move(matrix, gradient, momentum, group)
        return loss


def _move(matrix: Tensor, gradient: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
    """One step of one matrix: torch's own, but for the gathering."""
    beta, rate = group["momentum"], float(group["lr"])
    momentum.lerp_(gradient, 1 - beta)
    update = gradient.lerp(momentum, beta) if group["nesterov"] else momentum
    whole = update.full_tensor() if isinstance(update, DTensor) else update
    direction = _zeropower_via_newtonschulz(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
    if isinstance(matrix, DTensor):
        direction = _like(direction, matrix)
    matrix.mul_(1 - rate * group["weight_decay"])
    matrix.add_(direction, alpha=-_adjust_lr(rate, group["adjust_lr_fn"], matrix.shape))


def _like(whole: Tensor, matrix: DTensor) -> DTensor:
    """This process's part of `whole`, cut as `matrix` is; nothing travels."""
    mesh = matrix.device_mesh
    same = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same.redistribute(placements=matrix.placements)
