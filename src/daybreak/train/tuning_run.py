"""A tuning run from start to end: begin or go on, train, leave an ordinary model folder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from daybreak import settings as reading
from daybreak.engine.quantised_linear import is_quantised, unrounded
from daybreak.errors import DaybreakError
from daybreak.model.dropout import add_dropout
from daybreak.train import run_folder
from daybreak.train.records import Screen
from daybreak.train.run_status import Ending
from daybreak.train.stop import Stop, stop_on_signals
from daybreak.train.tuning import DTYPES, Job, Tuning
from daybreak.train.tuning_records import TuningRecords
from daybreak.train.tuning_result import Left, decoders_of, give_adapters, leave
from daybreak.train.tuning_settings import FREE, TuningSettings
from daybreak.train.tuning_start import check_bits, device_for
from daybreak.train.tuning_state import TuningState

E = TypeVar("E")


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
    """What `Job.save` wrote; None where the run has not finished, and where an adapter is all it leaves."""
    adapter: Path | None = None
    """The adapter in PEFT's files, where a language model got one."""


def tune(job: Job[E], settings: TuningSettings, folder: Path, screen: Screen) -> TuningOutcome:
    """Train `job` as `settings` say in the run folder `folder`; where a run stands there, go on with it from
    its newest checkpoint.

    SIGINT and SIGTERM end it after a checkpoint. Raises `DaybreakError` for settings or a folder that do not
    fit, for examples that are none or others than before, for a loss that is not finite, and where a
    checkpoint cannot be written.
    """
    if not job.examples:
        raise DaybreakError("there is no example to learn from; name a file that has some")
    with stop_on_signals() as stop, run_folder.locked(folder), contextlib.ExitStack() as kept:
        for decoder in decoders_of(job):
            kept.enter_context(unrounded(decoder))
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
        best, left = _finish(tuning, folder) if ending == "finished" else (None, Left())
    except BaseException as error:
        with contextlib.suppress(Exception):  # what is being written is finished, if it can be
            state.checkpoints.wait()
        records.failed(state.step, error)
        raise
    records.ended(state.step, ending, stop.signal if ending == "stopped" else None)
    scores, steps = records.last_scores, state.course.steps
    told = (ending, stop.signal, state.step, steps, records.loss, scores, best)
    return TuningOutcome(folder, *told, left.model, left.adapter)


def _prepare(job: Job[E], settings: TuningSettings) -> None:
    """Device, dtype, adapters and dropout."""
    decoders = list(decoders_of(job))
    for decoder in decoders:
        check_bits(decoder, settings.lora, settings.device)
    job.modules.to(device_for(settings.device, any(map(is_quantised, decoders))))
    job.dtype = DTYPES[settings.dtype]
    if settings.lora is not None:
        give_adapters(job, settings.lora, settings.seed)
    for decoder in decoders:
        add_dropout(decoder, **vars(settings.dropout))
    job.modules.train()


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


def _finish(tuning: Tuning[E], folder: Path) -> tuple[int | None, Left]:
    """Once all steps are done: the best weights, or the last, as a folder that others open. Returns how many
    steps the best had seen, where they are not the last, and what is left."""
    state, found = tuning.state, None
    if tuning.settings.evaluation.best and state.take_best():
        found = state.progress.best_step
        tuning.records.note(
            f"the weights after step {found:,} did best on the held-out examples and become the model"
        )
    if tuning.job.held_out and (found is not None or not tuning.records.last_scores):
        tuning.records.last_scores = tuning.score()
    tuning.job.modules.eval()
    return found, leave(tuning.job, tuning.settings, folder)
