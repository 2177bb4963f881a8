"""Deliberately wrong models of few bits, to prove that `few_bits` would notice.

What a product does wrong, all products do; what lies in the wrong place does so in one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak.checkpoint.convert import opened_source
from daybreak.compare import few_bits, parity, rounding
from daybreak.compare.few_bits import BEYOND, FACTOR, LEAD, SCHEMES, Noise
from daybreak.compare.mutants import Verdict
from daybreak.compare.parity import Pair
from daybreak.engine.packed import ROWS, Packed, pack, unpack
from daybreak.engine.quantised import MIDDLE, Quantised, Scheme
from daybreak.engine.quantised_linear import QuantisedLinear
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder

KIND = "few bits"


@torch.no_grad()
def judge(model: LanguageModel, folder: Path, seed: int) -> Iterator[Verdict]:
    """Try every mutant in every scheme on the model in float32, which was loaded from `folder`."""
    opened = opened_source(folder, None, None, False)
    for name, scheme in SCHEMES.items():
        pair = few_bits.pair_of(model, few_bits.quantised(opened, scheme), seed)
        noise = few_bits.noise_of(model.decoder, pair, scheme, seed)
        for subject, change, wrong in mutants(model.decoder, pair.decoder):
            with wrong:
                fate = _fate(model.decoder, pair, scheme, noise)
            yield Verdict(KIND, subject, f"{name}: {change}", fate)


def _fate(whole: Decoder, pair: Pair, scheme: Scheme, noise: Noise) -> str:
    """By which bound it was told, or nothing."""
    read: list[Tensor] = []

    def reading(pair: Pair) -> list[Tensor]:
        read.extend(parity.packed(pair))
        return read

    beyond = few_bits.beyond_rounding(whole, pair, scheme, reading)
    found = few_bits.cost(read, pair.truth, noise)
    if not beyond <= BEYOND:
        return f"products: {beyond:.1e}"
    if not found.kl <= FACTOR * noise.kl:
        return f"KL: {found.kl:.1e}"
    return "" if found.lead <= LEAD else f"lead: {found.lead:.1f}"


def mutants(whole: Decoder, few: Decoder) -> Iterator[tuple[str, str, AbstractContextManager[None]]]:
    """(subject, change, what makes `few` wrong for a while); `whole` is the same model in float32."""
    layers = {name: m for name, m in few.named_modules() if isinstance(m, QuantisedLinear)}
    numbers = {name: _numbers(layer) for name, layer in layers.items()}
    weights = {name: weight for name, (weight, _) in rounding.matrices(whole).items()}
    for subject, change, wrong in CHANGES:
        made = {name: wrong(numbers[name], weights[name]) for name in layers}
        found = {name: one for name, one in made.items() if one is not None}
        if found:
            yield subject, change, _with(layers, found)
    for subject, change, found in _misplaced(numbers):
        yield subject, change, _with(layers, found)
    yield "activations", "the scale of the token before", _with_scales_of_the_token_before(layers)
    biased = next((name for name, layer in layers.items() if layer.bias is not None), None)
    if biased is not None:
        yield "biases", f"that of {biased} left out", _with({}, {}, without_bias=layers[biased])


# Wrong products
# --------------------------------------------------------------------------------------------------------

Change = Callable[[Quantised, Tensor], Quantised | None]
"""Of a matrix, given its weights in float32; None: it would be the same."""


def _one_higher(few: Quantised, weight: Tensor) -> Quantised:
    if few.zeros is not None:
        return replace(few, zeros=few.zeros + 1)
    return replace(few, numbers=few.numbers.clamp(max=2 * MIDDLE[few.bits] - 2) + 1)


def _without_zeros(few: Quantised, weight: Tensor) -> Quantised | None:
    return few.zeros if few.zeros is None else replace(few, zeros=_zeros(replace(few, zeros=None)))


def _scales_of_the_row_before(few: Quantised, weight: Tensor) -> Quantised:
    return replace(few, scales=few.scales.roll(1, 0))


def _scales_of_the_group_before(few: Quantised, weight: Tensor) -> Quantised | None:
    return replace(few, scales=few.scales.roll(1, 1)) if few.scales.shape[1] > 1 else None


def _groups_one_early(few: Quantised, weight: Tensor) -> Quantised | None:
    """Each input is rounded with the scale of the next one, and read with its own."""
    if few.scales.shape[1] == 1:
        return None
    scales, zeros = (_by_inputs(part, few).roll(-1, 1) for part in (few.scales, _zeros(few)))
    return replace(few, numbers=_rounded(weight / scales + zeros, few))


def _without_rest(few: Quantised, weight: Tensor) -> Quantised | None:
    """The last group, where it is not full."""
    width = weight.shape[1]
    if few.group is None or width < few.group or width % few.group == 0:
        return None
    numbers = few.numbers.clone()
    begin = width // few.group * few.group
    numbers[:, begin:] = _by_inputs(_zeros(few), few)[:, begin:].to(torch.uint8)
    return replace(few, numbers=numbers)


def _lowest_bit_lost(few: Quantised, weight: Tensor) -> Quantised:
    return replace(few, numbers=few.numbers & 254)


def _rounded_down(few: Quantised, weight: Tensor) -> Quantised:
    scales, zeros = _by_inputs(few.scales, few), _by_inputs(_zeros(few), few)
    return replace(few, numbers=_rounded((weight / scales + zeros).floor(), few))


def _inputs_exchanged(few: Quantised, weight: Tensor) -> Quantised:
    numbers = few.numbers.clone()
    even = weight.shape[1] // 2 * 2
    numbers[:, 0:even:2], numbers[:, 1:even:2] = few.numbers[:, 1:even:2], few.numbers[:, 0:even:2]
    return replace(few, numbers=numbers)


def _rows_reversed(few: Quantised, weight: Tensor) -> Quantised:
    return replace(few, numbers=torch.cat((few.numbers[:ROWS].flip(0), few.numbers[ROWS:])))


CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("zero points", "one too high", _one_higher),
    ("zero points", "left out", _without_zeros),
    ("scales", "of the row before", _scales_of_the_row_before),
    ("scales", "of the group before", _scales_of_the_group_before),
    ("groups", "begin one input early", _groups_one_early),
    ("groups", "the last one left out where it is not full", _without_rest),
    ("numbers", "their lowest bit lost", _lowest_bit_lost),
    ("numbers", "rounded down", _rounded_down),
    ("numbers", "two neighbouring inputs exchanged", _inputs_exchanged),
    ("numbers", "the first block's rows in reverse", _rows_reversed),
)


def _misplaced(numbers: Mapping[str, Quantised]) -> Iterator[tuple[str, str, dict[str, Quantised]]]:
    """One matrix, or two, of which some lies elsewhere."""
    attention = "blocks.1.attention"
    query, key, value = (f"{attention}.{name}" for name in ("query", "key", "value"))
    other = query if numbers[query].shape == numbers[key].shape else value
    yield "rows", f"those of {other} and {key}", {other: numbers[key], key: numbers[other]}
    own = numbers[value]
    order = torch.arange(len(own.numbers))
    order[:2] = order[:2].flip(0)
    zeros = None if own.zeros is None else own.zeros[order]
    moved = replace(own, numbers=own.numbers[order], scales=own.scales[order], zeros=zeros)
    yield "rows", f"two of {value}", {value: moved}
    yield "scales", f"of the row before, in {value}", {value: replace(own, scales=own.scales.roll(1, 0))}


# How a decoder becomes wrong, and right again
# --------------------------------------------------------------------------------------------------------


@contextmanager
def _with(
    layers: Mapping[str, QuantisedLinear],
    found: Mapping[str, Quantised],
    without_bias: QuantisedLinear | None = None,
) -> Iterator[None]:
    """Inside, the matrices `found` are what the layers have."""
    touched = [layers[name] for name in found] + ([] if without_bias is None else [without_bias])
    kept = [(layer, layer.numbers, layer.scales, layer.zeros, layer.bias) for layer in touched]
    for name, few in found.items():
        layer = layers[name]
        layer.numbers, layer.scales, layer.zeros = pack(few, layer.scheme)
    if without_bias is not None:
        without_bias.bias = None
    try:
        yield
    finally:
        for layer, numbers, scales, zeros, bias in kept:
            layer.numbers, layer.scales, layer.zeros, layer.bias = numbers, scales, zeros, bias


@contextmanager
def _with_scales_of_the_token_before(layers: Mapping[str, QuantisedLinear]) -> Iterator[None]:
    def wrong(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(inputs: Tensor, *more: Any) -> Tensor:
            scales = inputs.abs().amax(-1, keepdim=True)  # [.., tokens, 1]
            return right(inputs * (scales.roll(1, -2) / scales), *more)

        return forward

    for layer in layers.values():
        layer.__dict__["forward"] = wrong(layer.forward)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["forward"]


def _numbers(layer: QuantisedLinear) -> Quantised:
    own = Packed(layer.numbers, layer.scales, layer.zeros)
    return unpack(own, layer.outputs, layer.width, layer.scheme)


def _zeros(few: Quantised) -> Tensor:
    return few.zeros if few.zeros is not None else torch.full_like(few.scales, MIDDLE[few.bits])


def _by_inputs(parts: Tensor, few: Quantised) -> Tensor:
    """[rows, groups] -> [rows, inputs]"""
    return parts.repeat_interleave(few.group or few.shape[1], 1)[:, : few.shape[1]]


def _rounded(numbers: Tensor, few: Quantised) -> Tensor:
    first = 0 if few.zeros is not None and few.bits == 4 else 1
    return numbers.round().clamp(first, 2 * MIDDLE[few.bits] - 1).to(torch.uint8)
