"""A run of ULMFiT from start to end: begin in a run folder or go on there, train, leave a model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from daybreak import families
from daybreak import settings as reading
from daybreak.errors import DaybreakError
from daybreak.recurrent_model import (
    RecurrentModel,
    create_recurrent,
    is_recurrent_folder,
    load_recurrent,
)
from daybreak.text.words import Words
from daybreak.train import run_folder
from daybreak.train.records import Screen
from daybreak.train.run_status import Ending
from daybreak.train.stop import Stop, stop_on_signals
from daybreak.train.tuning_records import TuningRecords
from daybreak.transfer.classify import ClassifyTask
from daybreak.transfer.language import LanguageTask
from daybreak.transfer.loop import Loop, Task
from daybreak.transfer.settings import FREE, ClassifySettings, LanguageSettings, TransferSettings
from daybreak.transfer.texts import read_texts
from daybreak.transfer.vocabulary import moved

S = TypeVar("S", bound=TransferSettings)


@dataclass(frozen=True)
class TransferOutcome:
    """What came of a run."""

    folder: Path
    ending: Ending
    signal: int | None
    step: int
    steps: int
    scores: Mapping[str, float]
    """Of the held-out texts, by the weights that were exported."""
    best_step: int | None
    """Steps done by these weights, where held-out texts chose them."""
    exported: Path | None


def given_settings(
    kind: type[S],
    out: Path | None,
    config: Path | None,
    own: Mapping[str, Any],
    words: Sequence[str],
    usual: Mapping[str, Any] | None = None,
) -> S:
    """`usual` values of the command, or those of the run in `out`; over them a file of settings, `own` (a
    tree), and single settings. Raises `DaybreakError` for what does not fit."""
    tree = run_folder.stored_tree(kind, out) if config is None else None
    if tree is None:
        tree = reading.merged(usual or {}, {} if config is None else reading.read_yaml(config))
    given = reading.merged(own, reading.from_words(words))
    return reading.build_given(kind, tree, "" if config is None else str(config), given)


def learn_language(settings: LanguageSettings, folder: Path, screen: Screen) -> TransferOutcome:
    """Pretrain from scratch, or go on from `settings.start` with the words of the new texts."""

    def task() -> Task:
        texts = read_texts(settings.data.files, settings.data.text)
        held_out = settings.data.held_out
        scored = read_texts(held_out, settings.data.text) if held_out else []
        start = opened(settings.start) if settings.start else None
        page = next(families.recurrents()) if start is None else start.family
        words = Words.learn((text.text for text in texts), page, settings.words, settings.least_count)
        if start is None:
            changes = {"direction": settings.direction, "context": settings.window, **settings.changes}
            model = create_recurrent(page, settings.size, settings.seed, words, **changes)
        else:
            model = moved(start, words)
        return LanguageTask(model, texts, scored, settings)

    return _run(task, settings, folder, screen)


def learn_classes(settings: ClassifySettings, folder: Path, screen: Screen) -> TransferOutcome:
    """Train a classifier on the language model `settings.start`."""

    def task() -> Task:
        start, data = opened(settings.start), settings.data
        texts = read_texts(data.files, data.text, data.label)
        scored = read_texts(data.held_out, data.text, data.label) if data.held_out else []
        return ClassifyTask(start, texts, scored, settings)

    return _run(task, settings, folder, screen)


def opened(source: str) -> RecurrentModel:
    """A model with its vocabulary. Raises `DaybreakError` where there is none."""
    folder = Path(source)
    if not is_recurrent_folder(folder):
        raise DaybreakError(
            f"{source or 'nothing'} is no folder of an LSTM: it needs a config.json of one, or fastai's .pth "
            "with its vocabulary as .pkl"
        )
    model = load_recurrent(folder)
    if model.tokenizer is None:
        raise DaybreakError(
            f"{folder} has no vocabulary; put words.json, or fastai's .pkl, beside the weights"
        )
    return model


def _run(
    task_of: Callable[[], Task], settings: TransferSettings, folder: Path, screen: Screen
) -> TransferOutcome:
    with stop_on_signals() as stop, run_folder.locked(folder):
        before = run_folder.stored_as(type(settings), folder)
        changes = {} if before is None else _changes(before, settings, folder)
        task = task_of()
        records = TuningRecords(folder, settings, screen)
        loop = Loop(task, folder, records)
        loop.resume()
        run_folder.write(folder, reading.to_yaml(settings))
        facts = task.facts()
        records.begin(
            loop.progress.step, task.steps, changes, facts, {key: str(value) for key, value in facts.items()}
        )
        return _trained(loop, folder, stop)


def _trained(loop: Loop, folder: Path, stop: Stop) -> TransferOutcome:
    task, records = loop.task, loop.records
    scores: dict[str, float] = {}
    best = None
    try:
        ending = loop.train(stop)
        if ending == "finished":
            best = loop.take_best()
            task.model.eval()
            scores = task.evaluate()
            task.save(folder / run_folder.EXPORT)
    except BaseException as error:
        records.failed(loop.progress.step, error)
        raise
    records.ended(loop.progress.step, ending, stop.signal if ending == "stopped" else None)
    exported = folder / run_folder.EXPORT if ending == "finished" else None
    return TransferOutcome(
        folder, ending, stop.signal, loop.progress.step, task.steps, scores, best, exported
    )


def _changes(before: TransferSettings, given: TransferSettings, folder: Path) -> dict[str, tuple[Any, Any]]:
    changes = reading.changed(before, given)
    begun = any((folder / run_folder.CHECKPOINTS).glob("step-*"))
    for name, (old, new) in changes.items():
        if begun and name.partition(".")[0] not in FREE:
            raise DaybreakError(
                f"{folder} holds a run with {name} {old!r}, not {new!r}; leave it as it was, or start "
                "another run with --out"
            )
    return changes


def absolute(settings: S) -> S:
    """With paths that hold wherever the run is continued from."""
    data = settings.data
    files, held_out = (
        tuple(str(Path(file).absolute()) for file in named) for named in (data.files, data.held_out)
    )
    start = str(Path(settings.start).absolute()) if settings.start else ""
    return dataclasses.replace(
        settings, start=start, data=dataclasses.replace(data, files=files, held_out=held_out)
    )
