"""The loops of `daybreak.compare.loops` as a reference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.compare import folder_of
from daybreak.compare.loops import Loops, Marks
from daybreak.compare.redraw import redraw
from daybreak.families.family import Family


def title() -> str:
    """Name, for the ledger."""
    return "loops written from the paper"


def build(family: Family, architecture: Architecture, seed: int) -> nn.Module:
    """The model of this shape in float32, every parameter redrawn."""
    model = _empty(family, architecture)
    redraw(model, seed)
    return model.eval()


def marks(architecture: Architecture) -> Marks:
    """The tokens of blanks as the loops take them."""
    blanks = architecture.blanks
    assert blanks is not None
    return Marks(blanks.start, blanks.masks, blanks.rest, blanks.runs_on)


def _empty(family: Family, architecture: Architecture) -> Loops:
    a = architecture
    sizes = (a.vocabulary, a.context, a.layers, a.width, a.heads, a.inner)
    model = Loops(sizes, marks(a), a.norm_eps, tanh=a.activation == "gelu_tanh")
    model.described = (family, architecture)
    return model


def save(model: Loops, folder: Path) -> None:
    """Under the names of published files."""
    family, architecture = model.described
    folder_of.write(folder, family, architecture, as_saved(model, dict(model.named_parameters())))


tensors = folder_of.tensors


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A folder opened by the loops."""
    model = _empty(*folder_of.shape(Path(folder)))
    prefix = model.described[0].prefix
    found = tensors(Path(folder))
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in found.items()})
    return model.to(dtype).eval()


def logits(model: Loops, tokens: Tensor) -> Tensor:
    """[length] ids of one text -> [length, vocabulary] float32."""
    found: Tensor = model(tokens)
    return found.float()


def as_saved(model: Loops, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only the prefix of the files is missing."""
    return {model.described[0].prefix + name: tensor for name, tensor in tensors.items()}
