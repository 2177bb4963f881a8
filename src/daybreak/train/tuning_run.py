"""A tuning run from start to end: begin or go on, train, leave an ordinary model folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from daybreak import settings as reading
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import DEFAULT, add_lora
from daybreak.model.decoder import Decoder
from daybreak.model.dropout import add_dropout
from daybreak.model.merging import merge, why_not_merged
from daybreak.train import run_folder
from daybreak.train.records import Screen
from daybreak.train.run_status import Ending
from daybreak.train.stop import Stop, stop_on_signals
from daybreak.train.tuning import DTYPES, Job, Tuning
from daybreak.train.tuning_records import TuningRecords
from daybreak.train.tuning_settings import FREE, TuningSettings
from daybreak.train.tuning_state import TuningState

E = TypeVar("E")
ADAPTER = "adapter"
"""Where a run leaves its adapter."""


@dataclass(frozen=True)
class TuningOutcome:
    """What came of a tuning run."""

    folder: Path
    ending: Ending
    signal: int | None
    """What stopped it."""
    step: int
    steps: int
    loss: float | None
    """Of the last steps; None if there was nothing left to do."""
    scores: dict[str, float]
    """Of the held-out examples, by the weights that were exported."""
    best_step: int | None
    """Steps done by the weights that were exported, where they are not the last."""
    exported: Path | None
    """What `Job.save` wrote."""


def tune(job: Job[E], settings: TuningSettings, folder: Path, screen: Screen) -> TuningOutcome:
    """Train `job` as `settings` say in the run folder `folder`; where a run stands there, go on with it from
    its newest checkpoint.

    SIGINT and SIGTERM end it after a checkpoint. Raises `DaybreakError` for settings or a folder that do not
    fit, for examples that are none or others than before, for a loss that is not finite, and where a
    checkpoint cannot be written.
    """
    if not job.examples:
        raise DaybreakError("there is no example to learn from; name a file that has some")
    with stop_on_signals() as stop, run_folder.locked(folder):
        return _tune(job, settings, folder, screen, stop)


def _tune(job: Job[E], settings: TuningSettings, folder: Path, screen: Screen, stop: Stop) -> TuningOutcome:
    before = run_folder.stored_as(type(settings), folder)
    changes = {} if before is None else _changes(before, settings, folder)
    _prepare(job, settings)
    records = TuningRecords(folder, settings, screen)
    state = TuningState(job.modules, settings, len(job.examples), folder, records.note)
    state.data = job.fingerprint()
    state.resume()
    run_folder.write(folder, reading.to_yaml(settings))
    records.begin(state.step, state.course.steps, changes, job.facts(), job.about())
    tuning = Tuning(job, settings, state, records)
    try:
        ending = tuning.train(stop)
        best = _finish(tuning, folder) if ending == "finished" else None
    except BaseException as error:
        with contextlib.suppress(Exception):  # what is being written is finished, if it can be
            state.checkpoints.wait()
        records.failed(state.step, error)
        raise
    records.ended(state.step, ending, stop.signal if ending == "stopped" else None)
    exported = folder / run_folder.EXPORT if ending == "finished" else None
    scores, steps = records.last_scores, state.course.steps
    return TuningOutcome(folder, ending, stop.signal, state.step, steps, records.loss, scores, best, exported)


def _prepare(job: Job[E], settings: TuningSettings) -> None:
    """Device, dtype and dropout."""
    cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    job.modules.to("cuda" if cuda else "cpu" if settings.device == "auto" else settings.device)
    job.dtype = DTYPES[settings.dtype]
    decoders = list(_decoders(job))
    for decoder in decoders:
        if settings.lora is not None:
            add_lora(decoder, settings.lora, seed=settings.seed)
            if reason := why_not_merged(decoder, DEFAULT):  # not only when all is done
                raise DaybreakError(f"lora.targets: {reason}; leave head and tokens out")
        add_dropout(decoder, **vars(settings.dropout))
    if settings.lora is not None:
        for one in job.fresh():
            one.requires_grad_(True)
    job.modules.train()


def _decoders(job: Job[Any]) -> Iterator[Decoder]:
    """Those that are trained."""
    for module in job.modules.modules():
        if isinstance(module, Decoder) and any(one.requires_grad for one in module.parameters()):
            yield module


def _changes(before: TuningSettings, given: TuningSettings, folder: Path) -> dict[str, tuple[object, object]]:
    """What `given` changes in a run that was started with `before`. Raises `DaybreakError` for a change that
    would make it another run, once it has a checkpoint."""
    changes = reading.changed(before, given)
    begun = any((folder / run_folder.CHECKPOINTS).glob("step-*"))
    for name, (old, new) in changes.items():
        if begun and name.partition(".")[0] not in FREE:
            raise DaybreakError(
                f"{folder} holds a run with {name} {old!r}, not {new!r}; leave it as it was, or start "
                "another run with --out"
            )
    return changes


def _finish(tuning: Tuning[E], folder: Path) -> int | None:
    """Once all steps are done: the best weights, or the last, as a folder that others open. Returns how many
    steps the best had seen, where they are not the last."""
    state, found = tuning.state, None
    if tuning.settings.evaluation.best and state.take_best():
        found = state.progress.best_step
        tuning.records.note(
            f"the weights after step {found:,} did best on the held-out examples and become the model"
        )
    if tuning.job.held_out and (found is not None or not tuning.records.last_scores):
        tuning.records.last_scores = tuning.score()
    tuning.job.modules.eval()
    if tuning.settings.lora is not None:
        _merge(tuning.job, folder / ADAPTER)
    tuning.job.save(folder / run_folder.EXPORT)
    return found


def _merge(job: Job[Any], folder: Path) -> None:
    """The adapter by itself, in PEFT's files, and then in the weights, so that the model is an ordinary
    one."""
    decoders, model = list(_decoders(job)), getattr(job, "model", None)
    if isinstance(model, LanguageModel):
        model.save_adapter(folder, DEFAULT)
    for decoder in decoders:
        merge(decoder, DEFAULT)
