"""Matrices that are kept in few bits, as far as a decoder has to know of them: they can be had whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from daybreak.model.decoder import Decoder

TIED = "tied_head"
"""The head that has no matrix of its own in a checkpoint."""


class FewBits(nn.Module, ABC):
    """In the place of a linear map or an embedding; its weights are no parameters, and stay as they are."""

    width: int
    outputs: int

    @abstractmethod
    def whole(self) -> Tensor:
        """The weights, [outputs, width] float32."""


def few_bits(modules: nn.Module) -> Iterator[tuple[str, FewBits]]:
    """All such matrices of a decoder or of several, by the names of their modules."""
    for name, module in modules.named_modules():
        if isinstance(module, FewBits):
            yield name, module


def held(decoder: Decoder, own: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """What a checkpoint of the decoder holds, by the names of parameters: `own` ones, and matrices of few
    bits, which have a shape here and no memory, with their biases."""
    found: dict[str, Tensor] = {name: one.detach() for name, one in own.items()}
    dtype = decoder.tokens.weight.dtype
    for name, matrix in few_bits(decoder):
        if name == TIED:
            continue
        found[f"{name}.weight"] = torch.empty(matrix.outputs, matrix.width, dtype=dtype, device="meta")
        bias = getattr(matrix, "bias", None)
        if isinstance(bias, Tensor):
            found[f"{name}.bias"] = bias.to(dtype)
    return found


def unpacked(matrix: FewBits) -> nn.Linear:
    """A linear map with the weights that the few bits stand for, which can be trained."""
    bias = getattr(matrix, "bias", None)
    found = nn.Linear(matrix.width, matrix.outputs, bias=bias is not None, device="meta")
    found.weight = nn.Parameter(matrix.whole())
    if bias is not None:
        found.bias = nn.Parameter(bias.clone())
    return found


def numel(modules: nn.Module) -> int:
    """How many weights there are, those of few bits included; a matrix with two uses counts once."""
    matrices = [one for name, one in few_bits(modules) if name.rpartition(".")[2] != TIED]
    packed = sum(one.outputs * one.width for one in matrices)
    biases = [getattr(one, "bias", None) for one in matrices]
    whole = [*modules.parameters(), *(one for one in biases if one is not None)]
    count: int = sum(one.numel() for one in whole)
    return packed + count
