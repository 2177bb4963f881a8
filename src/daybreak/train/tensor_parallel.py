"""Tensor parallelism: how each matrix is cut over processes, read off the architecture, for every design.

Megatron's layout (arXiv 1909.08053, section 3): queries, keys, values and the MLP's first maps are cut by
their outputs, attention's output and the MLP's last map by their inputs, so that a process computes whole
heads and a stretch of the MLP's inner components, and a block needs two sums forwards and two backwards. The
token embedding and the head are cut by the vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    RowwiseParallel,
    parallelize_module,
)

from daybreak.architecture import Architecture, Learned
from daybreak.engine.quantised_linear import is_quantised
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder

WHOLE = (Replicate(),)


class Whole(ParallelStyle):
    """A module that every process computes alike.

    Its parameters still become DTensors: then all of a model are of one kind, over one mesh, and the fused
    optimizers and the norm of the gradient take them together.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, None, self._into, self._out_of)  # type: ignore[arg-type]

    @staticmethod
    def _into(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        return (DTensor.from_local(inputs[0], mesh, WHOLE, run_check=False), *inputs[1:])

    @staticmethod
    def _out_of(module: nn.Module, outputs: DTensor, mesh: DeviceMesh) -> Any:
        return outputs.redistribute(placements=WHOLE).to_local()


def cut(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Cut the decoder over the processes of `mesh` (one axis), in place. Raises `DaybreakError` for an
    architecture that cannot be cut into so many parts, and for weights of few bits.
    """
    check(decoder.architecture, mesh.size())
    if is_quantised(decoder):
        raise DaybreakError("weights of few bits cannot be cut over processes; load the model without bits")
    decoder.part = (mesh.get_local_rank(), mesh.size())
    parallelize_module(decoder, mesh, plan(decoder.architecture))
    for parameter in decoder.parameters():
        parameter.register_post_accumulate_grad_hook(_cut_gradient)  # type: ignore[no-untyped-call]


def check(architecture: Architecture, ranks: int) -> None:
    """Raises `DaybreakError` unless heads and inner components divide among the ranks."""
    counts = {
        "heads": architecture.heads,
        "key_heads": architecture.key_heads or architecture.heads,
        "inner": architecture.inner,
    }
    for name, count in counts.items():
        if count % ranks:
            raise DaybreakError(
                f"{name} {count} cannot be divided among parallel.tensor {ranks} processes; choose a divisor"
            )


def plan(architecture: Architecture) -> dict[str, ParallelStyle]:
    """Names of the decoder's modules -> how they are cut; modules it does not have are left out."""
    given = (*WHOLE, None, None, None)  # the vectors, and what else a block hands to attention
    layouts: dict[str, ParallelStyle] = {
        "tokens": RowwiseParallel(input_layouts=Replicate()),
        "blocks.*.attention_norm": Whole(),
        # Made whole once for all three: their gradients are then added up before they are summed over ranks.
        "blocks.*.attention": PrepareModuleInput(input_layouts=given, desired_input_layouts=given),
        "blocks.*.attention.query": ColwiseParallel(),
        "blocks.*.attention.key": ColwiseParallel(),
        "blocks.*.attention.value": ColwiseParallel(),
        "blocks.*.attention.out": RowwiseParallel(),
        "blocks.*.mlp": PrepareModuleInput(input_layouts=WHOLE, desired_input_layouts=WHOLE),
        "blocks.*.mlp.up": ColwiseParallel(),
        "blocks.*.mlp.down": RowwiseParallel(),
    }
    if not architecture.shared_norm:
        layouts["blocks.*.mlp_norm"] = Whole()
    if architecture.gated:
        layouts["blocks.*.mlp.gate"] = ColwiseParallel()
    return {**layouts, **_around_the_blocks(architecture)}


def _around_the_blocks(architecture: Architecture) -> dict[str, ParallelStyle]:
    learned = isinstance(architecture.positions, Learned)
    present = {
        "project_in": architecture.embedding_width is not None,
        "project_out": architecture.embedding_width is not None,
        "positions": learned,
        "block_positions": learned and architecture.has_blocks,
        "embedding_norm": architecture.embedding_norm,
        "final_norm": architecture.final_norm,
    }
    layouts: dict[str, ParallelStyle] = {name: Whole() for name, there in present.items() if there}
    if architecture.tied:
        layouts["tied_head"] = _tied()
    else:
        layouts["head"] = ColwiseParallel(output_layouts=Replicate())
    return layouts


def _cut_gradient(parameter: Tensor) -> None:
    """An embedding's gradient comes whole; it is kept cut as the embedding is. (FSDP2 does so itself.)"""
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        parameter.grad = gradient.redistribute(placements=parameter.placements)


def _tied() -> ParallelStyle:
    """The embedding comes as it is cut; each process makes the logits of its part of the vocabulary."""
    inputs: tuple[Placement | None, ...] = (*WHOLE, None)
    return PrepareModuleInputOutput(
        input_layouts=inputs,
        desired_input_layouts=inputs,
        output_layouts=(Shard(-1),),
        desired_output_layouts=WHOLE,
    )
