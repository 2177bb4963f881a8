"""What a tuning run leaves in its folder: an ordinary model, an adapter in PEFT's files, or both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak.engine.quantised_linear import is_quantised
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import DEFAULT, add_lora
from daybreak.model.decoder import Decoder
from daybreak.model.merging import merge, why_not_saved
from daybreak.train.run_folder import EXPORT
from daybreak.train.tuning import Job
from daybreak.train.tuning_settings import TuningLora, TuningSettings

ADAPTER = "adapter"
"""Where a run leaves its adapter."""


@dataclass(frozen=True)
class Left:
    """What a run has left."""

    model: Path | None = None
    """A folder that is a model by itself."""
    adapter: Path | None = None


def decoders_of(job: Job[Any]) -> Iterator[Decoder]:
    """Those that are trained, or will be once they have adapters."""
    for module in job.modules.modules():
        if not isinstance(module, Decoder):
            continue
        if is_quantised(module) or any(one.requires_grad for one in module.parameters()):
            yield module


def is_adapter_alone(job: Job[Any]) -> bool:
    """Is an adapter all that a run leaves? So it is for a language model of few bits: what was learned is a
    percent of it, and goes with any weights of that model. A scorer has no form without its weights."""
    return isinstance(getattr(job, "model", None), LanguageModel) and any(map(is_quantised, decoders_of(job)))


def give_adapters(job: Job[Any], lora: TuningLora, seed: int) -> None:
    """Adapters for all that is trained; beside them only what begins as noise is trained. Raises
    `DaybreakError` for those that could not be saved at the end."""
    for decoder in decoders_of(job):
        add_lora(decoder, lora, seed=seed)
        if not is_adapter_alone(job) and (reason := why_not_saved(decoder, DEFAULT)):
            raise DaybreakError(f"lora.targets: {reason}; leave head and tokens out")
    for one in job.fresh():
        one.requires_grad_(True)


def leave(job: Job[Any], settings: TuningSettings, folder: Path) -> Left:
    """Write it. Weights of few bits are unpacked as they are written, and never all at once in memory."""
    adapter = _save_adapter(job, settings, folder / ADAPTER) if settings.lora is not None else None
    if is_adapter_alone(job):
        return Left(adapter=adapter)
    if settings.lora is not None:
        for decoder in decoders_of(job):
            if not is_quantised(decoder):
                merge(decoder, DEFAULT)
    job.save(folder / EXPORT)
    return Left(folder / EXPORT, adapter)


def _save_adapter(job: Job[Any], settings: TuningSettings, folder: Path) -> Path | None:
    """In PEFT's files, the tokenizer's beside them: it may have got the chat template that was learned."""
    model = getattr(job, "model", None)
    if not isinstance(model, LanguageModel):
        return None
    model.save_adapter(folder, DEFAULT, base=_name_of(settings))
    if model.tokenizer is not None:
        for name, content in model.tokenizer.files.items():
            (folder / name).write_bytes(content)
    return folder


def _name_of(settings: TuningSettings) -> str | None:
    """Of the model that the adapter belongs to, as PEFT can find it from anywhere."""
    start: str = getattr(settings, "start", "")
    return str(Path(start).absolute()) if start and Path(start).exists() else start or None
