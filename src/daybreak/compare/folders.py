"""`daybreak verify A B`: two checkpoints layer by layer, and the first module where they part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.compare.parity import BOUND
from daybreak.engine.quantised_linear import is_quantised
from daybreak.errors import DaybreakError
from daybreak.language_model import load
from daybreak.model.decoder import Decoder

TEXT = 64
"""Tokens read, or more where a window is longer."""


@dataclass(frozen=True)
class Departure:
    """How two checkpoints compare; `module` is the first whose output differs, None if none does.

    They are the same only if no weight differs either: a text does not reach every row of every table.
    """

    fields: dict[str, tuple[Any, Any]]
    """Fields of the architecture that differ."""
    weights: dict[str, float]
    """Parameters that differ, by the largest difference relative to the largest value."""
    module: str | None
    difference: float
    """Of that module's output, or of the logits."""
    checked: int
    """Modules compared."""

    @property
    def same(self) -> bool:
        return self.module is None and not self.fields and not self.weights


@torch.no_grad()
def compare_folders(first: str, second: str, bound: float = BOUND) -> Departure:
    """Both read the same random tokens; outputs are compared module by module in the order of computation."""
    a, b = load(first).decoder, load(second).decoder
    for name, decoder in ((first, a), (second, b)):
        if is_quantised(decoder):
            raise DaybreakError(
                f"{name} has weights of few bits, which differ from all others; `daybreak quantize --text` "
                "says by how much, and so does `daybreak verify` of the checkpoint that it was made from"
            )
    fields = differing_fields(a.architecture, b.architecture)
    _comparable(fields)
    vocabulary = min(a.architecture.vocabulary, b.architecture.vocabulary)
    shapes = (a.architecture, b.architecture)
    beyond = max(window or 0 for shape in shapes for window in shape.windows) + 5
    length = min(max(TEXT, beyond), *(shape.context for shape in shapes))
    tokens = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    one, other = trace(a, tokens), trace(b, tokens)
    weights = _differing_weights(a, b)
    for name, output in one.items():
        if name not in other or output.shape != other[name].shape:
            return Departure(fields, weights, name, float("inf"), len(one))
        difference = relative(output, other[name])
        if not difference <= bound:
            return Departure(fields, weights, name, difference, len(one))
    return Departure(fields, weights, None, relative(one["logits"], other["logits"]), len(one))


def _comparable(fields: dict[str, tuple[Any, Any]]) -> None:
    for name in ("width", "vocabulary", "embedding_width"):
        if name in fields:
            one, other = fields[name]
            raise DaybreakError(
                f"the two models differ in {name} ({one} and {other}): no output of theirs can be compared"
            )


def differing_fields(a: Architecture, b: Architecture) -> dict[str, tuple[Any, Any]]:
    """Field -> (a's, b's) where they differ."""
    names = [field.name for field in dataclasses.fields(a)]
    return {
        name: (getattr(a, name), getattr(b, name)) for name in names if getattr(a, name) != getattr(b, name)
    }


@torch.no_grad()
def trace(decoder: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """Output of every module, in the order in which they finish, and at last the logits; `tokens` [batch,
    length].
    """
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found[name] = output.float()

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in decoder.named_modules() if name]
    try:
        hidden = decoder(decoder.reading(tokens))
    finally:
        for hook in hooks:
            hook.remove()
    return {**found, "logits": decoder.unembed(hidden).float()}


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of `a`."""
    largest = float(a.abs().max())
    return float((a - b).abs().max()) / (largest or 1.0)


def _differing_weights(a: Decoder, b: Decoder) -> dict[str, float]:
    others = dict(b.named_parameters())
    found = {}
    for name, tensor in a.named_parameters():
        if name not in others or others[name].shape != tensor.shape:
            found[name] = float("inf")
        elif not torch.equal(tensor, others[name]):
            found[name] = relative(tensor.float(), others[name].float())
    return found
