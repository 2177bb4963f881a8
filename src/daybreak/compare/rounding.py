"""Rounding to few bits as docs/quantisation.md defines it, in floating point: slow, obvious, and nothing of
the engine's packing and kernels in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from daybreak.engine.kernels.build import library
from daybreak.engine.packed import group_of
from daybreak.engine.quantised import Scheme
from daybreak.model.decoder import Decoder, Tied

APART = 0.05
"""Steps that are drawn anew are so much finer or coarser at most."""


def weights(weight: Tensor, scheme: Scheme, draw: torch.Generator | None = None) -> Tensor:
    """`weight` [rows, inputs] float32 rounded as `scheme` says.

    With `draw` the steps are up to 5 % finer or coarser: rounding that loses as much, and other digits.
    """
    parts = _groups(weight, scheme.group)
    middle = 2 ** (scheme.bits - 1)
    first, last = 0 if scheme.zeros and scheme.bits == 4 else 1, 2 * middle - 1
    zeros: float | Tensor = float(middle)
    if scheme.zeros:
        least, most = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
        steps = _drawn((most - least) / (last - first), draw)
        zeros = (first - least / steps).round()
    else:
        steps = _drawn(parts.abs().amax(-1, keepdim=True) / (last - middle), draw)
    numbers = (parts / steps + zeros).round()
    if draw is None:  # finer steps would cut the largest off
        numbers = numbers.clamp(first, last)
    return ((numbers - zeros) * steps).flatten(1)[:, : weight.shape[1]]


def inputs(values: Tensor, scheme: Scheme, draw: torch.Generator | None = None) -> Tensor:
    """What a matrix multiplies, [tokens, inputs] float32: rounded to 8 bits where the kernels do so."""
    if library().functions is None:
        return values
    parts = _groups(values, group_of(scheme))
    largest = _drawn(parts.abs().amax(-1, keepdim=True), draw)
    return ((parts * (127 / largest)).round() * (largest / 127)).flatten(1)[:, : values.shape[1]]


def matrices(decoder: Decoder) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weights and biases of what is quantised of a decoder in floating point, by the modules' names."""
    return {
        name: (decoder.tokens.weight, None) if isinstance(module, Tied) else (module.weight, module.bias)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Tied)
    }


@contextmanager
def noise(decoder: Decoder, scheme: Scheme, draw: torch.Generator) -> Iterator[None]:
    """Inside, the decoder in float32 loses as much as rounding loses."""

    def instead(weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            flat = inputs(given[0].flatten(0, -2), scheme, draw)
            return functional.linear(flat, weights(weight, scheme, draw), bias).view(output.shape)

        return hook

    hooks = [
        decoder.get_submodule(name).register_forward_hook(instead(*matrix))
        for name, matrix in matrices(decoder).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _groups(values: Tensor, group: int | None) -> Tensor:
    """[rows, inputs] -> [rows, groups, group], zeros behind the last input."""
    rows, width = values.shape
    group = group or width
    return functional.pad(values, (0, -width % group)).view(rows, -1, group)


def _drawn(steps: Tensor, draw: torch.Generator | None) -> Tensor:
    """Steps of 0, of groups with nothing in them, become 1."""
    steps = torch.where(steps > 0, steps, 1.0)
    if draw is None:
        return steps
    return steps * (1 - APART + 2 * APART * torch.rand(steps.shape, generator=draw))
