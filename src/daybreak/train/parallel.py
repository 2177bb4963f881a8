"""One model on many processes: weights, gradients and optimizer state are cut, the result is that of one.

The model's code knows nothing of this. From outside, in this order: blocks forget their activations
(recomputation), matrices are cut (`tensor_parallel`), and what is left is sharded by FSDP2, block by block.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_
from torch.utils.checkpoint import checkpoint

from daybreak.model.decoder import Decoder
from daybreak.train import tensor_parallel
from daybreak.train.world import REPLICAS, SHARDS, TENSOR, World


def parallelise(decoder: Decoder, world: World, recompute: bool = False) -> None:
    """Move `decoder`, the same whole one on every process, to its devices and cut it, in place.

    Each process keeps its part only, and its parameters are new ones: make optimizers afterwards. All are
    then DTensors over one mesh. Gradients are summed over the data ranks, not averaged: divide the loss by
    what all of them count. With `recompute` each block is computed a second time on the way back, which
    leaves one block's activations in memory instead of all.

    After a pass without a backward one (evaluation, samples) call `gather_back`.
    """
    _quieten()
    if recompute:
        _recompute(decoder)
    if world.mesh is None:
        decoder.to(world.device)
        return
    if world.tensor_ranks > 1:
        tensor_parallel.cut(decoder, world.mesh[TENSOR])
    if world.data_ranks > 1:
        _shard(decoder, world)


def gather_back(decoder: Decoder) -> None:
    """Let go of the whole weights that the last forward pass has gathered and no backward pass let go of."""
    if isinstance(decoder, FSDPModule):
        decoder.reshard()


def gradient_norm(decoder: Decoder, world: World) -> Tensor:
    """The norm of the whole gradient, as one process would have it: a float32 scalar, alike on all processes.

    Not finite if any process's gradient is not.
    """
    return norm((one.grad for one in decoder.parameters() if one.grad is not None), world)


def norm(tensors: Iterable[Tensor], world: World) -> Tensor:
    """The norm of all elements of `tensors`, which may be cut: one sum over all processes, whatever the cuts.
    A float32 scalar.
    """
    parts, shares = [], []
    for tensor in tensors:
        parts.append(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
        shares.append(1.0 if not isinstance(tensor, DTensor) else 1.0 / _copies(tensor))
    if not parts:
        return torch.zeros((), device=world.device)
    norms = torch.stack(torch._foreach_norm(parts)).double()  # [tensors]
    total = (norms.square() * norms.new_tensor(shares)).sum()
    if world.mesh is not None:
        distributed.all_reduce(total)
    return total.sqrt().float()


def clip(decoder: Decoder, most: float, norm: Tensor) -> None:
    """Scale the gradient down to the norm `most` where its `norm` is larger."""
    clip_grads_with_norm_(decoder.parameters(), most, norm)


def _copies(tensor: DTensor) -> int:
    """How many processes hold the same part of `tensor`."""
    mesh, copies = tensor.device_mesh, 1
    for axis, placement in enumerate(tensor.placements):
        # A sum that is not made yet has no norm; gradients are made whole before a step.
        assert not placement.is_partial(), f"a gradient is still to be summed: {tensor.placements}"
        copies *= mesh.size(axis) if placement.is_replicate() else 1
    return copies


def _quieten() -> None:
    """Leave out what torch says about our code, which is nothing for the person who runs it."""
    # A tensor that is cut along two axes is put together by one collective per axis.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    # Nothing here changes an output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _recompute(decoder: Decoder) -> None:
    for block in decoder.blocks:
        # The names of the parameters stay, as no module is put around the block. Nothing is drawn in a block.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _shard(decoder: Decoder, world: World) -> None:
    assert world.mesh is not None
    mesh = world.mesh[SHARDS] if world.mesh[REPLICAS].size() == 1 else world.mesh[REPLICAS, SHARDS]
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh)
    # The head is applied after the decoder's forward pass, so that the root's weights must stay till then.
    fully_shard(decoder, mesh=mesh, reshard_after_forward=False)
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(
                True
            )  # Gloo can do no other, and nothing is to be divided
