"""SwissArmyTransformer's models as a reference; which of them, the pages of trials say."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture, Rotary
from daybreak.compare import folder_of, sat
from daybreak.compare.loops import layout
from daybreak.compare.loops_reference import marks
from daybreak.compare.redraw import redraw
from daybreak.families.family import Family
from daybreak.families.trials import REFERENCES

_FUSED = ".attention.query_key_value."


def title() -> str:
    """Name and version, for the ledger."""
    return f"{sat.DISTRIBUTION} {sat.version()}"


def build(family: Family, architecture: Architecture, seed: int) -> nn.Module:
    """The model of this shape in float32, every parameter redrawn."""
    model = _empty(family, architecture)
    redraw(model, seed)
    return model.eval()


def _empty(family: Family, architecture: Architecture) -> sat.OnCpu:
    a = architecture
    assert isinstance(a.positions, Rotary)
    arguments = {
        "num_layers": a.layers,
        "vocab_size": a.vocabulary,
        "hidden_size": a.width,
        "num_attention_heads": a.heads,
        "max_sequence_length": a.context,
        "inner_hidden_size": a.inner,
        "layernorm_epsilon": a.norm_eps,
        "position_encoding_2d": a.positions.blocks,
    }
    place = REFERENCES[family.name].split("/")[1]
    model = sat.OnCpu(place, arguments, _frequencies(a.positions))
    model.described = (family, architecture)
    return model


def _frequencies(positions: Rotary) -> Tensor:
    """[width / 2]; its files compute them in float32, the published ones of one family round them."""
    turned = torch.arange(0, positions.width, 2).float() / positions.width
    exact = 1.0 / positions.base**turned
    return exact.half().float() if positions.half_frequencies else exact


def save(model: sat.OnCpu, folder: Path) -> None:
    """In the names and layout of the family's published files."""
    family, architecture = model.described
    folder_of.write(folder, family, architecture, as_saved(model, dict(model.named_parameters())))


tensors = folder_of.tensors


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A folder opened by the reference."""
    model = _empty(*folder_of.shape(Path(folder)))
    found = tensors(Path(folder))
    heads = model.described[1].heads
    own = {}
    for name in dict(model.named_parameters()):
        tensor = found.pop(_saved_name(name))
        own[name] = _heads_within_thirds(tensor, heads) if _regrouped(model, name) else tensor
    assert not found, found.keys()
    model.load_state_dict(own, strict=False)  # its buffers are frequencies, which are set in each call
    return model.to(dtype).eval()


def logits(model: sat.OnCpu, tokens: Tensor) -> Tensor:
    """[length] ids of one text -> [length, vocabulary] float32.

    Positions and sight are those of the loops, which read them off the tokens by themselves.
    """
    found = layout(tokens.tolist(), marks(model.described[1]))
    every = range(len(tokens))
    sight = torch.tensor([[found.sees(query, key) for key in every] for query in every])
    result: Tensor = model(tokens, torch.tensor(found.positions), torch.tensor(found.places), sight)
    return result.float()


def as_saved(model: sat.OnCpu, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names in files, queries, keys and values head by head."""
    heads = model.described[1].heads
    return {
        _saved_name(name): _thirds_within_heads(tensor, heads) if _regrouped(model, name) else tensor
        for name, tensor in tensors.items()
    }


def _saved_name(name: str) -> str:
    inside = name.removeprefix("model.")
    return inside if inside.startswith("transformer.") else ".".join(inside.split(".")[-2:])


def _regrouped(model: sat.OnCpu, name: str) -> bool:
    """One of its two models holds queries, keys and values one after another, the published files head by
    head.
    """
    return _FUSED in name and not model.hides


def _thirds_within_heads(tensor: Tensor, heads: int) -> Tensor:
    rest = tensor.shape[1:]
    return tensor.reshape(3, heads, -1, *rest).transpose(0, 1).reshape(-1, *rest)


def _heads_within_thirds(tensor: Tensor, heads: int) -> Tensor:
    rest = tensor.shape[1:]
    return tensor.reshape(heads, 3, -1, *rest).transpose(0, 1).reshape(-1, *rest)
