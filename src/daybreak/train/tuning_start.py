"""What a tuning run starts from: whole weights, or weights of few bits, on which adapters are trained."""

from __future__ import annotations

from typing import Protocol

import torch

from daybreak.engine.quantised_linear import bits_of
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel, device_of, load
from daybreak.model.decoder import Decoder
from daybreak.train.tuning_settings import TuningLora


class Started(Protocol):
    """Settings of a run that starts from a model."""

    @property
    def start(self) -> str:
        """A folder, a repository of the hub, or a name."""

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of it."""

    @property
    def device(self) -> str:
        """cpu, cuda, or auto."""

    @property
    def lora(self) -> TuningLora | None:
        """None: all weights are trained."""


def start_of(settings: Started) -> LanguageModel:
    """The model on the CPU, its weights rounded as they are read where `lora.bits` says so. Raises
    `DaybreakError` for one that cannot be trained so."""
    lora = settings.lora
    model = load(settings.start, settings.revision, bits=None if lora is None else lora.bits)
    check_bits(model.decoder, lora, settings.device)
    return model


def check_bits(decoder: Decoder, lora: TuningLora | None, device: str) -> None:
    """Raises `DaybreakError` for weights of few bits without adapters, of other bits than were asked for, or
    on another device than the CPU."""
    bits = bits_of(decoder)
    if lora is not None and lora.bits not in (None, bits):
        told = "are whole" if bits is None else f"have {bits} bits"
        raise DaybreakError(
            f"lora.bits is {lora.bits}, but the model's weights {told}; load it with bits={lora.bits}"
        )
    if bits is None:
        return
    if lora is None:
        raise DaybreakError(
            f"the model's weights have {bits} bits and stay as they are; train adapters on them (--lora.rank "
            "8), or start from the checkpoint that they were made from"
        )
    if device not in ("auto", "cpu"):
        raise DaybreakError(f"device is {device!r}, but weights of few bits are for the CPU so far")


def device_for(device: str, few_bits: bool) -> torch.device:
    """What a run's `device` means on this machine. Raises `DaybreakError` for one that it does not have."""
    auto = "cuda" if torch.cuda.is_available() and not few_bits else "cpu"
    return device_of(auto if device == "auto" else device)
