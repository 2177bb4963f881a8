"""Whom each family is compared with: the code that it was published in, or loops written from its paper.

A reference is a module with the functions of `Reference`; the pages of trials name it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.families.family import Family
from daybreak.families.trials import REFERENCES


class Reference(Protocol):
    """The other side of a comparison."""

    def title(self) -> str:
        """Name and version, for the ledger. Raises `DaybreakError` with the remedy where it is missing."""
        ...

    def build(self, family: Family, architecture: Architecture, seed: int) -> nn.Module:
        """The model of this shape in float32, every parameter redrawn."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Into a folder that `daybreak.load` opens."""
        ...

    def tensors(self, folder: Path) -> dict[str, Tensor]:
        """What `save` wrote, by the names in the file."""
        ...

    def load(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A checkpoint opened by the reference."""
        ...

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """[length] ids of one text -> [length, vocabulary] float32; nothing padded."""
        ...

    def as_saved(self, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names of the model's parameters (its gradients) in the layout of files."""
        ...


def of(family: Family) -> Reference:
    """The family's reference."""
    module = importlib.import_module(_MODULES[REFERENCES.get(family.name, "transformers").split("/")[0]])
    return cast("Reference", module)


_MODULES = {
    "transformers": "daybreak.compare.reference",
    "SAT": "daybreak.compare.sat_reference",
    "loops": "daybreak.compare.loops_reference",
}
