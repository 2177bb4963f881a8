"""Low-rank adapters on the maps of a decoder (LoRA, Hu et al., arXiv 2106.09685).

A map keeps its module, its name and its weights, be they floating point or of few bits (then it is QLoRA,
Dettmers et al., arXiv 2305.14314); the adapters are a part of the module and correct what comes out of it.

    add_lora(decoder, LoraSettings(rank=8, targets=("query", "value")))
    optimizer = AdamW(trainable(decoder).values())
    with disabled(decoder):                                # the reference of PPO and DPO: the same weights
        reference = decoder.logits(tokens)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from daybreak.errors import DaybreakError, nearest
from daybreak.model.decoder import Decoder, Tied
from daybreak.model.lora import Adapters, Lora, LoraEmbedding, Switch, Whole
from daybreak.model.lora_settings import LoraSettings, chosen, maps

DEFAULT = "default"
"""An adapter's name where none is given."""
_serials = itertools.count(1)


def add_lora(decoder: Decoder, settings: LoraSettings, name: str = DEFAULT, seed: int = 0) -> None:
    """Give the decoder an adapter that changes nothing yet, and make it the one that is used and trained;
    everything else is frozen. `seed` decides how its A are drawn.

    Raises `DaybreakError` for a target that the decoder does not have, and for a name that is taken.
    """
    switch = prepared(decoder, name)
    shapes, generator = maps(decoder.architecture), torch.Generator().manual_seed(seed)
    targets, whole = (chosen(decoder.architecture, names) for names in (settings.targets, settings.whole))
    if both := [own for own in targets if own in whole]:
        raise DaybreakError(f"{both[0]} is a target and whole; it can be one of them")
    made: dict[str, nn.Module] = {own: whole_of(decoder, own) for own in whole}
    for own in targets:
        _check_head(decoder, own, shapes[own])
        kind = LoraEmbedding if own == "tokens" else Lora
        lora = kind(*shapes[own], settings.rank, settings.alpha, settings.rslora, settings.dropout)
        lora.draw(generator)
        made[own] = lora
    if settings.shared:
        share(made)
    attach(decoder, switch, name, settings, made)


def _check_head(decoder: Decoder, own: str, shape: tuple[int, int]) -> None:
    module = decoder.get_submodule(own)
    if own == "head" and isinstance(module, nn.Linear) and module.out_features != shape[1]:
        raise DaybreakError(
            f"the head gives {module.out_features} scores and is trained as a whole; leave head out of the "
            "targets"
        )


def share(made: dict[str, nn.Module]) -> None:
    """Let queries, keys and values of a block read one A: the first one's."""
    for own, lora in made.items():
        owner, _, last = own.rpartition(".")
        first = next(
            (made[f"{owner}.{one}"] for one in ("query", "key", "value") if f"{owner}.{one}" in made), None
        )
        if last in ("query", "key", "value") and isinstance(first, Lora) and isinstance(lora, Lora):
            lora.a = first.a


def attach(
    decoder: Decoder, switch: Switch, name: str, settings: LoraSettings, made: dict[str, nn.Module]
) -> None:
    """Put adapters (name of the map -> adapter) into their places under one name, and use them."""
    if not switch.settings:
        switch.trained = [one for one in decoder.parameters() if one.requires_grad]
        decoder.requires_grad_(False)
    decoder.switch = switch
    device = decoder.tokens.weight.device
    for own, adapter in made.items():
        module = decoder.get_submodule(own)
        if not isinstance(getattr(module, "adapters", None), Adapters):
            module.adapters = Adapters(switch)
            # Before all other hooks: what follows the map, follows the corrected map.
            module.register_forward_hook(module.adapters, prepend=True)
        # Not in training mode until somebody asks for it, as everything here is without dropout.
        cast(Adapters, module.adapters)[name] = adapter.to(device).eval()
    switch.settings[name], switch.serials[name] = settings, next(_serials)
    use(decoder, name)


def use(decoder: Decoder, name: str | None) -> None:
    """Have this adapter correct the maps from now on, and be trained; None: none. Raises `DaybreakError` for
    one that there is not, and where another one is merged.
    """
    if name is None and decoder.switch is None:
        return
    switch = known(decoder, name)
    if switch.merged is not None:
        raise DaybreakError(
            f"adapter {switch.merged!r} is merged into the weights; unmerge it before others are used"
        )
    switch.active = name
    for own, adapter in every(decoder):
        adapter.requires_grad_(own == name)


def trainable(decoder: Decoder) -> dict[str, nn.Parameter]:
    """What is to be trained, by its name: with adapters, the parameters of the one in use."""
    return {name: one for name, one in decoder.named_parameters() if one.requires_grad}


def base(decoder: Decoder) -> dict[str, nn.Parameter]:
    """The decoder's own parameters, those of adapters left out."""
    own = {id(one) for _, adapter in every(decoder) for one in adapter.parameters()}
    return {name: one for name, one in decoder.named_parameters() if id(one) not in own}


@contextmanager
def disabled(decoder: Decoder) -> Iterator[None]:
    """Within, the decoder computes as if it had no adapters. Raises `DaybreakError` where one is merged."""
    switch = decoder.switch or Switch()
    if switch.merged is not None:
        raise DaybreakError(
            f"adapter {switch.merged!r} is merged into the weights; unmerge it to turn it off"
        )
    before, switch.off = switch.off, True
    try:
        yield
    finally:
        switch.off = before


@contextmanager
def selected(decoder: Decoder, names: Sequence[str | None]) -> Iterator[None]:
    """Within, each text of a batch (a row of what the maps read) has the adapter of its name; None: none."""
    if decoder.switch is None:
        yield
        return
    switch = decoder.switch
    before, switch.rows = switch.rows, names
    try:
        yield
    finally:
        switch.rows = before


def remove(decoder: Decoder, name: str) -> None:
    """Take an adapter away; without any left, what was trained before them is trained again."""
    switch = known(decoder, name)
    if switch.merged == name:
        raise DaybreakError(f"adapter {name!r} is merged into the weights; unmerge it before it is removed")
    for module in decoder.modules():
        found = getattr(module, "adapters", None)
        if isinstance(found, Adapters) and name in found:
            del found[name]
    del switch.settings[name], switch.serials[name]
    if switch.active == name:
        switch.active = None
    if not switch.settings:
        for one in switch.trained:
            one.requires_grad_(True)


def every(decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """All adapters of all maps: name of the adapter, and the adapter."""
    for module in decoder.modules():
        if isinstance(module, Adapters):
            yield from module.items()


def of(decoder: Decoder, name: str) -> dict[str, nn.Module]:
    """The parts of one adapter, by the names of their maps. Raises `DaybreakError` where there is none."""
    known(decoder, name)
    found = {}
    for own in maps(decoder.architecture):
        adapters = getattr(decoder.get_submodule(own), "adapters", None)
        if isinstance(adapters, Adapters) and name in adapters:
            found[own] = adapters[name]
    return found


def settings_of(decoder: Decoder, name: str) -> LoraSettings:
    """What an adapter was made with."""
    return known(decoder, name).settings[name]


def active(decoder: Decoder) -> str | None:
    """The adapter that corrects the maps."""
    return None if decoder.switch is None else decoder.switch.active


def names(decoder: Decoder) -> list[str]:
    """Of all adapters."""
    return [] if decoder.switch is None else list(decoder.switch.settings)


def known(decoder: Decoder, name: str | None) -> Switch:
    """The decoder's switch. Raises `DaybreakError` for an adapter that it does not have."""
    switch = decoder.switch or Switch()
    if name is not None and name not in switch.settings:
        there = ", ".join(switch.settings) or "none; add_adapter or load_adapter gives it one"
        raise DaybreakError(
            f"the model has no adapter {name!r}{nearest(name, switch.settings)}; it has {there}"
        )
    return switch


def prepared(decoder: Decoder, name: str) -> Switch:
    """The decoder's switch, if it can have one more adapter of that name. Raises `DaybreakError` if not."""
    switch = decoder.switch or Switch()
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise DaybreakError(f"an adapter cannot be called {name!r}; take another name, without dots")
    if name in switch.settings:
        raise DaybreakError(
            f"the model has an adapter {name!r} already; take another name, or remove that one"
        )
    if switch.merged is not None:
        raise DaybreakError(
            f"adapter {switch.merged!r} is merged into the weights; unmerge it before others come"
        )
    if decoder.part != (0, 1):
        raise DaybreakError(
            "the model is spread over several processes, where it can have no adapters so far"
        )
    return switch


def whole_of(decoder: Decoder, name: str) -> Whole:
    """A copy of a map, to be trained. Raises `DaybreakError` where it has few bits or shares its matrix."""
    module = decoder.get_submodule(name)
    if isinstance(module, Tied) or (name == "tokens" and decoder.architecture.tied):
        raise DaybreakError(
            "the head and the token embedding are one matrix, so neither can be trained alone"
        )
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise DaybreakError(
            f"{name} has weights of few bits, which are not trained; load the model without bits to do so"
        )
    return Whole(module)
