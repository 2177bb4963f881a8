"""The parts of low-rank adapters (LoRA, Hu et al., arXiv 2106.09685, section 4.1): what corrects one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from daybreak.model.lora_settings import LoraSettings, scale_of


@dataclass(eq=False)
class Switch:
    """Which adapters a decoder has, and which of them corrects its maps."""

    settings: dict[str, LoraSettings] = field(default_factory=dict)
    serials: dict[str, int] = field(default_factory=dict)
    """Of each adapter a number that no other ever had."""
    active: str | None = None
    rows: Sequence[str | None] | None = None
    """The adapters of the texts that are read beside each other, instead of `active`."""
    off: bool = False
    merged: str | None = None
    """Which one is in the weights."""
    weights: int = 0
    """Of each merge a number that no other ever had; 0: none is merged."""
    before: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    """The weights that were there."""
    trained: list[nn.Parameter] = field(default_factory=list)
    """What was trained before there were adapters."""


class Lora(nn.Module):
    """One adapter of one map."""

    def __init__(
        self, inputs: int, outputs: int, rank: int, alpha: float, rslora: bool, dropout: float = 0.0
    ):
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.scale = scale_of(rank, alpha, rslora)
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))

    def draw(self, generator: torch.Generator) -> None:
        """B starts at zero, so that nothing is changed; A as a linear map's weights do."""
        nn.init.kaiming_uniform_(self.a, math.sqrt(5), generator=generator)
        nn.init.zeros_(self.b)

    def forward(self, output: Tensor, inputs: Tensor, *_: Tensor) -> Tensor:
        """The map's `output` [.., outputs] for its `inputs` [.., inputs], corrected."""
        read = inputs.to(self.a.dtype)
        if self.dropout and self.training and torch.is_grad_enabled():
            read = functional.dropout(read, self.dropout)
        return output + (functional.linear(functional.linear(read, self.a), self.b) * self.scale).to(
            output.dtype
        )


class LoraEmbedding(Lora):
    """The same of the token embedding, whose inputs are ids."""

    def draw(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.a)
        nn.init.normal_(self.b, generator=generator)

    def forward(self, output: Tensor, inputs: Tensor, *_: Tensor) -> Tensor:
        rows = functional.embedding(inputs, self.a.t())  # [.., rank]
        return output + (functional.linear(rows, self.b) * self.scale).to(output.dtype)


class Whole(nn.Module):
    """A map's copy, which is trained as a whole."""

    def __init__(self, module: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        self.weight = nn.Parameter(module.weight.detach().clone())
        bias = getattr(module, "bias", None)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.reads_ids = isinstance(module, nn.Embedding)

    def forward(self, output: Tensor, inputs: Tensor, *_: Tensor) -> Tensor:
        """What the copy makes of the map's `inputs`."""
        del output
        if self.reads_ids:
            return functional.embedding(inputs, self.weight)
        return functional.linear(inputs, self.weight, self.bias)


class Adapters(nn.ModuleDict):
    """The adapters of one map by name; called behind the map with what it read and what it made of it."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

    def forward(self, module: nn.Module, read: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del module
        switch = self.switch
        if switch.off:
            return output
        if switch.rows is None:
            return self._corrected(switch.active, output, *read)
        for name in dict.fromkeys(switch.rows):
            rows = [row for row, own in enumerate(switch.rows) if own == name]
            if len(rows) == len(switch.rows):
                return self._corrected(name, output, *read)
            if name is not None and name in self:
                some = torch.tensor(rows, device=output.device)
                own = self._corrected(name, output[some], read[0][some], *read[1:])
                output = output.index_copy(0, some, own)
        return output

    def _corrected(self, name: str | None, output: Tensor, *read: Tensor) -> Tensor:
        if name is None or name not in self:
            return output
        return cast(Tensor, self[name](output, *read))
