"""Adapters in the weights themselves: the same model without the extra products, and back to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from daybreak.errors import DaybreakError
from daybreak.model.adapters import active, base, known, of, use
from daybreak.model.decoder import Decoder
from daybreak.model.few_bits import FewBits, held
from daybreak.model.lora import Lora, LoraEmbedding, Switch, Whole

_numbers = itertools.count(1)


def why_not_merged(decoder: Decoder, name: str) -> str | None:
    """Why an adapter cannot become a part of the weights; None: it can. Raises `DaybreakError` where there is
    no such adapter.
    """
    if reason := why_not_saved(decoder, name):
        return reason
    for own in of(decoder, name):
        if not isinstance(decoder.get_submodule(own), nn.Linear | nn.Embedding):
            return f"the weights of {own} are of few bits, to which nothing can be added"
    return None


def why_not_saved(decoder: Decoder, name: str) -> str | None:
    """Why no checkpoint can hold what an adapter makes of the model; None: it can."""
    tied = decoder.architecture.tied
    if any(own == "tied_head" or (own == "tokens" and tied) for own in of(decoder, name)):
        return "the head and the token embedding are one matrix, and the adapter changes one of them"
    return None


@torch.no_grad()
def merge(decoder: Decoder, name: str) -> None:
    """Put an adapter into the weights: W + scale · B A, added in float64; what was there is kept.

    Raises `DaybreakError` where it cannot be, and where another one is there already.
    """
    switch, reason = known(decoder, name), why_not_merged(decoder, name)
    if switch.merged is not None:
        raise DaybreakError(f"adapter {switch.merged!r} is merged already; unmerge it before {name!r}")
    if reason is not None:
        raise DaybreakError(
            f"adapter {name!r} cannot be merged: {reason}; use it beside the weights, as it is used without "
            "being merged, or load the model without bits"
        )
    use(decoder, None)
    changes = [
        (parameter, merged)
        for own, part in of(decoder, name).items()
        for parameter, merged in _merged(decoder.get_submodule(own), part)
    ]
    switch.before = [(parameter, parameter.data) for parameter, _ in changes]
    for parameter, merged in changes:
        parameter.data = merged
    switch.merged, switch.weights = name, next(_numbers)


def unmerge(decoder: Decoder, name: str) -> None:
    """Restore the weights that were there before `merge`, to the bit; the adapter is used beside them. Raises
    `DaybreakError` for one that is not merged.
    """
    switch = known(decoder, name)
    if switch.merged != name:
        raise DaybreakError(f"adapter {name!r} is not merged into the weights; nothing is to be undone")
    for parameter, before in switch.before:
        parameter.data = before
    switch.before, switch.merged, switch.weights = [], None, 0
    use(decoder, name)


def weights(decoder: Decoder) -> int:
    """A number of the weights as they are: 0 for the decoder's own, another one for each merge."""
    return (decoder.switch or Switch()).weights


def merged(decoder: Decoder) -> str | None:
    """Which adapter is in the weights."""
    return (decoder.switch or Switch()).merged


def as_computed(decoder: Decoder) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """What a checkpoint holds that computes what the decoder does: shapes and dtypes by parameters' names,
    and a function that makes one of them by its name, weights of few bits unpacked and with the adapter that
    is used beside them. Raises `DaybreakError` for an adapter that no checkpoint can hold.
    """
    shapes, name = held(decoder, base(decoder)), active(decoder)
    parts = {} if name is None else of(decoder, name)
    if name is not None and (reason := why_not_saved(decoder, name)):
        raise DaybreakError(f"adapter {name!r} cannot be saved in the weights: {reason}")

    @torch.no_grad()
    def read(parameter: str) -> Tensor:
        own, _, kind = parameter.rpartition(".")
        module, part = decoder.get_submodule(own), parts.get(own)
        if isinstance(part, Whole):
            return cast(Tensor, getattr(part, kind)).detach()
        few = kind == "weight" and isinstance(module, FewBits)
        weight = cast(FewBits, module).whole() if few else shapes[parameter]
        return _corrected(weight, part) if kind == "weight" and isinstance(part, Lora) else weight

    return shapes, read


def _merged(module: nn.Module, part: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """The map's parameters, and what they become."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(part, Whole):
        return [
            (own[name], copy.detach().to(own[name].dtype, copy=True))
            for name, copy in part.named_parameters()
        ]
    return [(own["weight"], _corrected(own["weight"], cast(Lora, part)))]


def _corrected(weight: Tensor, lora: Lora) -> Tensor:
    """A map's weights and what an adapter adds to them."""
    change = lora.b.double() @ lora.a.double() * lora.scale
    whole = weight.double() + (change.t() if isinstance(lora, LoraEmbedding) else change).to(weight.device)
    return whole.to(weight.dtype)
