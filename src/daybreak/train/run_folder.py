"""The folder of a run: which settings it goes on with, and that only one process at a time does."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from daybreak import settings as reading
from daybreak.errors import DaybreakError
from daybreak.train.settings import Settings

S = TypeVar("S")
SETTINGS = "settings.yaml"
CHECKPOINTS = "checkpoints"
EXPORT = "model"
LOCK = ".lock"
UNFINISHED = ".settings-"

FIXED = (
    *("objective", "seed", "ema", "model", "data.context", "data.weights", "data.masking"),
    *("batch.sequences", "batch.ramp_from", "batch.ramp_by", "batch.ramp_over", "optimizer.name"),
)
"""Settings that a run cannot change on the way: with another value it would be another run."""


def stored(folder: Path) -> Settings | None:
    """`stored_as` of a pretraining run."""
    return stored_as(Settings, folder)


def stored_as(kind: type[S], folder: Path) -> S | None:
    """The settings, of class `kind`, that a run in `folder` was last started with; None: there is no run.
    Raises `DaybreakError` for a folder that holds something else."""
    tree = stored_tree(kind, folder)
    if tree is not None:
        return reading.build(kind, tree)
    if folder.exists() and (not folder.is_dir() or any(map(_is_others, folder.iterdir()))):
        raise DaybreakError(f"{folder} exists and is no run; give another folder with --out")
    return None


def stored_tree(kind: type[Any], folder: Path | None) -> dict[str, Any] | None:
    """The tree of these settings, as the file has it; None: there is no run. Raises `DaybreakError` for a run
    of another kind, whose settings are others."""
    file = None if folder is None else folder / SETTINGS
    if file is None or not file.is_file():
        return None
    try:
        tree = reading.read_yaml(file)
        reading.build(kind, tree)
    except DaybreakError as error:
        raise DaybreakError(
            f"{folder} holds a run of another command, or of another version ({SETTINGS}: {error}); give "
            "another folder with --out"
        ) from None
    return tree


def _is_others(file: Path) -> bool:
    """Not what a run leaves that was killed before its first file was whole."""
    return file.name != LOCK and not file.name.startswith(UNFINISHED)


def continued(before: Settings, given: Settings, folder: Path) -> dict[str, tuple[Any, Any]]:
    """What `given` changes in a run that was started with `before`: dotted name -> both values. Raises
    `DaybreakError` for a change that would make it another run, once it has a checkpoint."""
    changes = reading.changed(before, given)
    begun = any((folder / CHECKPOINTS).glob("step-*"))
    for name, (old, new) in changes.items():
        if begun and any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED):
            raise DaybreakError(
                f"{folder} holds a run with {name} {old!r}, not {new!r}; leave it as it was, or start "
                "another run with --out (and --model.start to begin from this one's model)"
            )
    return changes


def settled(given: Settings, before: Settings | None, dtype_of: Callable[[], str]) -> Settings:
    """`given` with nothing left to be chosen by the machine: a run keeps what was chosen when it began."""
    precision, data = given.precision, given.data
    if data.context is None and before is not None:
        data = dataclasses.replace(data, context=before.data.context)
    if data.folder is not None:
        data = dataclasses.replace(
            data, folder=data.folder.absolute()
        )  # the run may be continued from anywhere
    if precision.dtype == "auto":
        dtype = dtype_of() if before is None else before.precision.dtype
        precision = dataclasses.replace(precision, dtype=dtype)  # type: ignore[arg-type]
    return dataclasses.replace(given, precision=precision, data=data)


def keep(folder: Path, settings: Settings, context: int) -> None:
    """Write the settings file, with the `context` that was found."""
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, context=context))
    write(folder, reading.to_yaml(settings))


def write(folder: Path, text: str) -> None:
    """Make `text` the settings file, which is the old one or the new one at every moment."""
    for left in folder.glob(f"{UNFINISHED}*"):
        left.unlink()
    unfinished = folder / f"{UNFINISHED}{os.getpid()}"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / SETTINGS)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process can train in `folder`; the lock ends with the process, however it ends.
    Raises `DaybreakError` if another one does. A folder in which no run began is removed again."""
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DaybreakError(f"another process is training in {folder}; wait for it, or end it") from None
        try:
            yield
        finally:
            if not any(map(_is_others, folder.iterdir())):
                (folder / LOCK).unlink()
                with contextlib.suppress(OSError):  # somebody else has put something there
                    for each in created:
                        each.rmdir()
