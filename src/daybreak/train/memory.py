"""What a training step needs of each device's memory, before there is anything in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Muon

from daybreak.architecture import Architecture
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Batch
from daybreak.objectives.causal import Causal
from daybreak.objectives.summed import ROWS, loss_sum
from daybreak.train.optimizers import optimizers
from daybreak.train.precision import products
from daybreak.train.settings import OptimizerSettings


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, at the moment when all of it is there: gradients of earlier micro batches while
    the last one has been read forwards."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    """The moving average of the weights."""
    gathered: int
    """Weights that are cut over processes, put together for the layers that are being computed."""
    casts: int
    """Copies of matrices in the dtype of the products, kept from the way forwards to the way back."""
    activations: int
    """What the blocks keep for the way back."""
    head: int
    """Logits, and what the head and the loss keep for the way back."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps between the ways forwards and back."""

    casts: int
    activations: int
    head: int


@dataclass(frozen=True)
class Cut:
    """Over how many processes a model is divided."""

    shards: int = 1
    tensor: int = 1
    gathers: bool = False
    """Weights are put together for use: with more than one data rank, sharded or replicated."""


def memory(
    architecture: Architecture,
    optimizer: OptimizerSettings,
    kept: Kept,
    cut: Cut,
    average: bool,
) -> Memory:
    """Weights, gradients, optimizer state and average are float32, cut over shards and tensor ranks."""
    with torch.device("meta"):
        decoder = Decoder(architecture)
    named = dict(decoder.named_parameters())
    parts: dict[Tensor, int] = {one: one.nbytes // _divided(name, one, cut) for name, one in named.items()}
    weights = sum(parts.values()) // cut.shards
    state = sum(copies * parts[one] for one, copies in _state(decoder, optimizer)) // cut.shards
    return Memory(
        weights=weights,
        gradients=weights,
        optimizer=state,
        average=weights if average else 0,
        gathered=_gathered(named, parts) if cut.gathers else 0,
        casts=kept.casts // cut.tensor,
        activations=kept.activations,
        head=kept.head // cut.tensor,
    )


def kept(
    architecture: Architecture,
    micro: int,
    context: int,
    dtype: torch.dtype,
    recompute: bool,
    losses_of: Callable[[Decoder, Batch], Tensor] = loss_sum,
) -> Kept:
    """What is kept of `micro` sequences of `context` tokens, with products in `dtype`.

    Counted on a model without memory of its own: the loss is computed on fake tensors, and every tensor that
    autograd keeps is noted once by its storage. A compiled step keeps less. With `recompute` the blocks keep
    their inputs, and one block what it computes. `losses_of` is how the run computes its losses.
    """
    noted = _Noted(architecture)
    inputs = Causal(architecture.blanks).batch(torch.zeros(micro, context + 1, dtype=torch.int64))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        decoder = Decoder(architecture)
        noted.weights = {one.untyped_storage()._cdata for one in decoder.parameters()}
        decoder.register_forward_hook(noted.head_follows)
        with products(dtype), torch.autograd.graph.saved_tensors_hooks(noted.pack, noted.unpack):
            losses = losses_of(decoder, _faked(inputs))
        del losses
    activations = noted.bytes["activations"]
    if recompute:
        held = 4 * architecture.layers * micro * context * architecture.width
        activations = held + activations // architecture.layers
    part = min(ROWS, micro * context) * architecture.vocabulary * 4  # the gradient of the logits in work
    return Kept(noted.bytes["casts"], activations, noted.bytes["head"] + part)


class _Noted:
    """Tensors that autograd keeps, by what they are."""

    def __init__(self, architecture: Architecture) -> None:
        with torch.device("meta"):
            named = Decoder(architecture).named_parameters()
        shapes = [tuple(one.shape) for name, one in named if one.ndim == 2 and "positions" not in name]
        self._matrices = {*shapes, *(shape[::-1] for shape in shapes)}
        self._seen: dict[int, Any] = {}
        self._place = "activations"
        self.weights: set[int] = set()
        self.bytes = {"casts": 0, "activations": 0, "head": 0}

    def head_follows(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs, output
        self._place = "head"

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        known = storage._cdata in self.weights or storage._cdata in self._seen
        if not known and tensor.numel():
            self._seen[storage._cdata] = storage  # held, so that no other takes its place
            cast = tensor.dtype != torch.float32 and tuple(tensor.shape) in self._matrices
            self.bytes["casts" if cast else self._place] += storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


def _faked(batch: Batch) -> Batch:
    """The same shapes without the numbers."""
    fields: dict[str, Any] = {
        field.name: torch.empty_like(value)
        for field in dataclasses.fields(batch.reading)
        if isinstance(value := getattr(batch.reading, field.name), Tensor)
    }
    return Batch(dataclasses.replace(batch.reading, **fields), torch.empty_like(batch.targets))


def _divided(name: str, parameter: Tensor, cut: Cut) -> int:
    """Tensor parallelism cuts matrices and the token table; vectors and tables of positions stay whole."""
    return cut.tensor if parameter.ndim == 2 and "positions" not in name else 1


def _state(decoder: Decoder, settings: OptimizerSettings) -> Iterator[tuple[Tensor, int]]:
    """Every parameter with how many numbers the optimizer keeps beside each of its own: AdamW keeps the two
    moments, Muon the momentum."""
    for optimizer in optimizers(decoder, settings):
        for group in optimizer.param_groups:
            yield from ((one, 1 if isinstance(optimizer, Muon) else 2) for one in group["params"])


def _gathered(named: dict[str, nn.Parameter], parts: dict[Tensor, int]) -> int:
    """What stands outside the blocks stays together for the whole step; of the blocks, the one in work and
    the next."""
    blocks: dict[str, int] = {}
    outside = 0
    for name, one in named.items():
        if name.startswith("blocks."):
            number = name.split(".")[1]
            blocks[number] = blocks.get(number, 0) + parts[one]
        else:
            outside += parts[one]
    return outside + sum(sorted(blocks.values())[-2:])
