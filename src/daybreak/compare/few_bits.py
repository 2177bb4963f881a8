"""Weights of 8 and 4 bits beside the same model in float32: no more may be lost than rounding loses.

Three bounds. Each product must be the product of rounded numbers, and nothing else. What all of them together
cost is compared with noise of the size of rounding, which the float32 model is given. And a first choice may
be given up only where its lead is within that noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from daybreak.checkpoint.convert import opened_source
from daybreak.checkpoint.fill import fill
from daybreak.checkpoint.opened import Opened
from daybreak.compare import parity, rounding, texts
from daybreak.compare.parity import READINGS, Pair
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_folder import write_quantised
from daybreak.engine.quantised_linear import QuantisedLinear, Quantiser
from daybreak.language_model import LanguageModel, load
from daybreak.model.decoder import Decoder

SCHEMES = {
    "int8": Scheme(8),
    "int8, groups of 32 with zero points": Scheme(8, 32, zeros=True),
    "int4, groups of 32": Scheme(4, 32),
}
"""The usual two, and one that has everything."""
FACTOR = 3.0
"""KL divergence may be so many times that of the noise. Over 1,008 random models it was 0.6 to 2.1 times."""
LEAD = 10.0
"""A first choice may be given up if its lead is at most so many standard deviations of the noise. Over the
same models it was 6.4."""
BEYOND = 0.02
"""Share of a product's error, squared, that need not be that of rounding: an input that lies half way between
two numbers may be rounded either way. Over the same models it was 0.5 %."""
DRAWS = 4
"""Of the noise."""
FOLDER = "quantised folder"
MODE_NAMES = (*READINGS, FOLDER)
PRODUCTS = "products"
"""What fails where a product is not that of rounded numbers."""


@dataclass(frozen=True)
class Cost:
    """What a mode of reading costs, over all tokens of all texts."""

    kl: float
    """Mean KL divergence of the next tokens from float32's, in nats."""
    kept: float
    """Share of tokens after which the same next one is the likeliest."""
    lead: float
    """The largest lead of float32's first choice that was given up, in standard deviations of the noise."""


@dataclass(frozen=True)
class Noise:
    """What rounding of random digits costs."""

    kl: float
    spread: Tensor
    """Its standard deviation in the logits after each token, [tokens]."""


@dataclass(frozen=True)
class FewBits:
    """One shape or checkpoint with weights of few bits."""

    family: str
    label: str
    scheme: str
    """A key of `SCHEMES`."""
    noise: float
    """KL divergence that rounding costs, in nats."""
    costs: dict[str, Cost]
    """By mode."""
    beyond: float
    """Of the worst product, the share of its error that is not that of rounding."""

    @property
    def bound(self) -> float:
        """Of the KL divergence."""
        return FACTOR * self.noise

    def failures(self) -> list[str]:
        """Modes beyond a bound, and `PRODUCTS`; not-a-number is beyond every bound."""
        found = [
            mode for mode, cost in self.costs.items() if not (cost.kl <= self.bound and cost.lead <= LEAD)
        ]
        return found if self.beyond <= BEYOND else [*found, PRODUCTS]


@torch.no_grad()
def compare(model: LanguageModel, folder: Path, label: str, seed: int) -> Iterator[FewBits]:
    """The model in float32, which was loaded from `folder`, with the weights of all `SCHEMES`."""
    opened = opened_source(folder, None, None, False)
    for name, scheme in SCHEMES.items():
        pair = pair_of(model, quantised(opened, scheme), seed)
        noise = noise_of(model.decoder, pair, scheme, seed)
        costs = {mode: cost(read(pair), pair.truth, noise) for mode, read in READINGS.items()}
        again = replace(pair, decoder=_through_a_folder(opened, scheme))
        costs[FOLDER] = cost(parity.singles(again), pair.truth, noise)
        beyond = beyond_rounding(model.decoder, pair, scheme, parity.singles)
        yield FewBits(model.family.name, label, name, noise.kl, costs, beyond)


def quantised(opened: Opened, scheme: Scheme) -> Decoder:
    """As `daybreak.load` makes it."""
    family, others = opened.spelled or opened.family, partial(Quantiser, scheme=scheme)
    shape, place = opened.architecture, torch.device("cpu")
    return fill(family, shape, opened.found, torch.float32, place, opened.folder, others)


def _through_a_folder(opened: Opened, scheme: Scheme) -> Decoder:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "quantised"
        write_quantised(opened, folder, scheme)
        return load(folder).decoder  # mapped: the files live as long as it does


@torch.no_grad()
def pair_of(model: LanguageModel, few: Decoder, seed: int) -> Pair:
    """The decoder with weights of few bits, the texts, and what float32 says to them."""
    drawn = texts.draw(model.architecture, seed)
    whole = Pair(model.family, model.decoder, model.decoder, drawn, [])
    return replace(whole, decoder=few, truth=parity.singles(whole))


@torch.no_grad()
def noise_of(decoder: Decoder, pair: Pair, scheme: Scheme, seed: int) -> Noise:
    """Mean of `DRAWS` readings in which all weights and inputs are rounded, to steps that are drawn."""
    draw = torch.Generator().manual_seed(seed)
    whole, truth = replace(pair, decoder=decoder), torch.cat(pair.truth)
    kl, variance = 0.0, torch.zeros(len(truth))
    for _ in range(DRAWS):
        with rounding.noise(decoder, scheme, draw):
            found = torch.cat(parity.packed(whole))
        kl += float(_kl(found, truth)) / DRAWS
        variance += (found - truth).var(-1, correction=0) / DRAWS
    return Noise(kl, variance.sqrt())


def cost(ours: Sequence[Tensor], truth: Sequence[Tensor], noise: Noise) -> Cost:
    """Logits of all texts, [length, vocabulary] each."""
    found, exact = torch.cat(list(ours)), torch.cat(list(truth))
    best, chosen = exact.argmax(-1, keepdim=True), found.argmax(-1, keepdim=True)
    leads = (exact.gather(1, best) - exact.gather(1, chosen))[:, 0] / noise.spread
    # What is no number has no maximum, and must not pass for one.
    lead = parity.greatest([float(leads.max()), *([] if found.isfinite().all() else [float("nan")])])
    return Cost(float(_kl(found, exact)), float((best == chosen).double().mean()), lead)


def _kl(found: Tensor, exact: Tensor) -> Tensor:
    one, other = (logits.double().log_softmax(-1) for logits in (exact, found))
    return (one.exp() * (one - other)).sum(-1).mean()


@torch.no_grad()
def beyond_rounding(
    decoder: Decoder, pair: Pair, scheme: Scheme, read: Callable[[Pair], list[Tensor]]
) -> float:
    """The worst product's error that is not that of rounding, as a share of that of rounding; both squared.

    Every matrix of few bits is given its inputs once more, in float32 and rounded by its definition.
    """
    own: dict[str, float] = {}
    due: dict[str, float] = {}

    def watch(name: str, weight: Tensor, bias: Tensor | None) -> Callable[..., None]:
        rounded = rounding.weights(weight, scheme)

        def hook(module: QuantisedLinear, given: tuple[Tensor, ...], output: Tensor) -> None:
            flat = given[0].flatten(0, -2)
            exact = functional.linear(flat, weight, bias)
            right = functional.linear(rounding.inputs(flat, scheme), rounded, bias)
            own[name] = own.get(name, 0.0) + _squares(output.flatten(0, -2) - right)
            # Where all weights are whole steps there is no error of rounding, and still that of float32.
            due[name] = due.get(name, 0.0) + max(_squares(exact - right), 1e-10 * _squares(right))

        return hook

    layers = {n: m for n, m in pair.decoder.named_modules() if isinstance(m, QuantisedLinear)}
    originals = rounding.matrices(decoder)
    assert layers.keys() == originals.keys()
    hooks = [layer.register_forward_hook(watch(name, *originals[name])) for name, layer in layers.items()]
    try:
        read(pair)
    finally:
        for handle in hooks:
            handle.remove()
    return parity.greatest(own[name] / due[name] for name in own)


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())
