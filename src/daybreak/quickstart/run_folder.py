"""The folder that a run leaves behind, complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daybreak.errors import DaybreakError

RESULT = "quickstart.json"
"""Settings and results; its presence says that a folder is a run of ours and may be replaced by the next."""
METRICS = "metrics.jsonl"


def check_target(folder: Path, force: bool) -> None:
    """Raises `DaybreakError` if something stands at `folder` that is not a run and would be lost."""
    if folder.is_dir() and (force or (folder / RESULT).is_file() or not any(folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        remedy = "name another folder with --out" + (", or add --force" if folder.is_dir() else "")
        raise DaybreakError(f"{folder} exists and is no earlier run of this command; {remedy}")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `target` at the end; if the block raises, it is removed and
    `target` stays as it was."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    except OSError as error:
        raise DaybreakError(f"{target} cannot be written: {error.strerror or error}") from None
    try:
        scratch.chmod(0o777 & ~_umask())  # temporary folders are private, a result is like any other
        yield scratch
        _replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def append_metrics(folder: Path, entry: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(scratch: Path, target: Path) -> None:
    if not target.exists():
        os.rename(scratch, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    os.rename(target, old / "old")
    os.rename(scratch, target)
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
