"""A decoder whose layers run in the compiled step: the same weights, read where they lie.

Only biases and norms that are not in float32 are copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from daybreak.architecture import Alibi, Rotary
from daybreak.engine.kernels import structures
from daybreak.engine.kernels.build import library
from daybreak.engine.packed import group_of
from daybreak.engine.quantised_linear import QuantisedLinear
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Block, Decoder, Tied
from daybreak.model.positions import Turns, alibi_slopes

KINDS = {torch.float32: structures.FLOATS, torch.bfloat16: structures.BFLOATS}


def why_not(decoder: Decoder) -> str | None:
    """Why a decoder does not run in the compiled step; None: it does."""
    found = library()
    if found.functions is None:
        return found.about
    if decoder.tokens.weight.device.type != "cpu":
        return "they are for the CPU"
    if decoder.part != (0, 1):
        return "the model is spread over several processes"
    for name, module in decoder.blocks.named_modules():
        if isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter:
            return f"the weights of {name} are a {type(module.weight).__name__}"
        if isinstance(module, nn.Linear) and module.weight.dtype not in KINDS:
            return f"they do not compute with {str(module.weight.dtype).removeprefix('torch.')}"
    schemes = {module.scheme for module in decoder.blocks.modules() if isinstance(module, QuantisedLinear)}
    return "its layers are quantised in different ways" if len(schemes) > 1 else None


class CompiledLayers:
    """The layers of a decoder, from its embedding to what its head reads."""

    def __init__(
        self, decoder: Decoder, stored: str, groups: Sequence[int], *, streamed: bool = False
    ) -> None:
        """`groups`: for each layer, which of the page tables it uses; `stored`: dtype of keys and values;
        `streamed`: the weights may lie on a disk. The weights must stay where they are.
        """
        functions = library().functions
        assert functions is not None and why_not(decoder) is None
        self._functions = functions
        self._kept: list[Tensor] = []
        architecture = decoder.architecture
        heads = structures.Heads(
            architecture.heads,
            architecture.key_heads or architecture.heads,
            architecture.head_width,
            structures.STORED.index(stored),
        )
        rotary = architecture.positions if isinstance(architecture.positions, Rotary) else None
        slopes = alibi_slopes(architecture.heads) if isinstance(architecture.positions, Alibi) else None
        self._blocks = (structures.Block * architecture.layers)()
        self._model = structures.Model(
            layers=architecture.layers,
            width=architecture.width,
            inner=architecture.inner,
            heads=heads,
            order=structures.ORDERS.index(architecture.block),
            shared_norm=architecture.shared_norm,
            normed_residual=architecture.residual == "normed",
            gated=architecture.gated,
            activation=structures.ACTIVATIONS.index(architecture.activation),
            root_mean_square=architecture.norm == "rms",
            turning=rotary.width if rotary else 0,
            neighbours=rotary is not None and rotary.pairs == "neighbours",
            has_final_norm=architecture.final_norm,
            streamed=streamed,
            residual_scale=architecture.residual_scale,
            epsilon=architecture.norm_eps,
            slopes=None if slopes is None else self._keep(torch.tensor(slopes)),
            final_norm=self._norm(decoder.final_norm) if architecture.final_norm else structures.Norm(),
            blocks=self._blocks,
        )
        functions.bytes_of_layer.restype = ctypes.c_int64
        self.layer_bytes = int(functions.bytes_of_layer(ctypes.byref(self._model)))
        """Of a page: keys and values of one layer."""
        for number, block in enumerate(decoder.blocks):
            assert isinstance(block, Block)
            offset = groups[:number].count(groups[number]) * self.layer_bytes
            self._blocks[number] = self._block(block, architecture.window(number), groups[number], offset)

    def run(
        self,
        hidden: Tensor,
        turns: Turns | None,
        owners: Tensor,
        places: Tensor,
        ends: Tensor,
        tables: Tensor,
    ) -> None:
        """All layers and the final norm, in place of `hidden` [tokens, width] float32.

        `owners`, `places`, `ends` [tokens] int64: the text of each token, its place in it and the end of what
        it sees; those of one text stand together and in order. `tables` [groups, texts] int64: addresses of
        the lists of pages' addresses. `turns`: as of `rotary_turns`, [1, 1, tokens, width / 2].
        """
        assert hidden.is_contiguous() and hidden.dtype == torch.float32
        angles = [] if turns is None else [(cosine.contiguous(), sine.contiguous()) for cosine, sine in turns]
        two = ctypes.c_void_p * 2
        tokens = structures.Tokens(
            hidden.shape[0],
            tables.shape[1],
            hidden.data_ptr(),
            two(*(cosine.data_ptr() for cosine, _ in angles)),
            two(*(sine.data_ptr() for _, sine in angles)),
            owners.data_ptr(),
            places.data_ptr(),
            ends.data_ptr(),
            tables.data_ptr(),
            torch.get_num_threads(),
        )
        self._functions.step(ctypes.byref(self._model), ctypes.byref(tokens))

    def _block(self, block: Block, window: int | None, group: int, offset: int) -> structures.Block:
        shared, gated = block.architecture.shared_norm, block.mlp.gated
        owners: dict[str, nn.Module] = dict.fromkeys(structures.MATRICES[:4], block.attention)
        owners |= {name: block.mlp for name in structures.MATRICES[4:] if gated or name != "gate"}
        return structures.Block(
            attention_norm=self._norm(block.attention_norm),
            mlp_norm=structures.Norm() if shared else self._norm(block.mlp_norm),
            window=window or 0,
            group=group,
            offset=offset,
            scale=block.attention.scale,
            **{name: _matrix(getattr(owner, name), self._kept) for name, owner in owners.items()},
        )

    def _norm(self, norm: Any) -> structures.Norm:
        bias = getattr(norm, "bias", None)
        return structures.Norm(*(None if part is None else self._keep(part) for part in (norm.weight, bias)))

    def _keep(self, tensor: Tensor) -> int:
        return _kept(tensor, self._kept)


class CompiledHead:
    """The head of a decoder: [tokens, width] -> [tokens, vocabulary], in float32."""

    def __init__(self, decoder: Decoder) -> None:
        functions = library().functions
        assert functions is not None
        self._functions = functions
        self._kept: list[Tensor] = []
        module: nn.Module = decoder.tied_head if decoder.architecture.tied else decoder.head
        if isinstance(module, Tied):
            self._kept.append(decoder.tokens.weight.detach())
            self._matrix = _table(decoder.tokens.weight, None)
        else:
            self._matrix = _matrix(module, self._kept)

    def __call__(self, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        count, width = hidden.shape
        if width != self._matrix.inputs:
            raise DaybreakError(f"the head reads {self._matrix.inputs} components, not {width}")
        results = torch.empty(count, self._matrix.outputs)
        self._functions.linear(
            ctypes.byref(self._matrix),
            ctypes.c_void_p(hidden.data_ptr()),
            ctypes.c_int64(count),
            ctypes.c_void_p(results.data_ptr()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return results


def _matrix(module: nn.Module, kept: list[Tensor]) -> structures.Matrix:
    if isinstance(module, QuantisedLinear):
        parts = (module.numbers, module.scales, module.zeros, module.bias)
        places = (None if part is None else part.data_ptr() for part in parts)
        per_row = module.scheme.group is None
        sizes = (module.outputs, module.width, group_of(module.scheme), per_row)
        return structures.Matrix(module.scheme.bits, *places, *sizes)
    assert isinstance(module, nn.Linear)
    if not module.weight.is_contiguous():
        # As read from files that hold it transposed; from now on it lies as the products want it.
        module.weight.data = module.weight.detach().contiguous()
    kept.append(module.weight.detach())  # also where the module gets other ones
    return _table(module.weight, None if module.bias is None else _kept(module.bias, kept))


def _table(weight: Tensor, bias: int | None) -> structures.Matrix:
    assert weight.is_contiguous()
    return structures.Matrix(KINDS[weight.dtype], weight.data_ptr(), None, None, bias, *weight.shape, 0, 0)


def _kept(tensor: Tensor, kept: list[Tensor]) -> int:
    kept.append(tensor.detach().float().contiguous())
    return kept[-1].data_ptr()
