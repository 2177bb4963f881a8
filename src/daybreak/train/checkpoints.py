"""The checkpoints of a run: written in the background, complete or not there at all, checked before use."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from daybreak.errors import DaybreakError
from daybreak.train import checkpoint_files as files
from daybreak.train.checkpoint_files import NUMBERS, Digest
from daybreak.train.ranks import Ranks
from daybreak.train.settings import CheckpointSettings
from daybreak.train.state import flatten, set_values

_COMPLETE = re.compile(r"step-(\d{8,})")
_LEFT_OVER = re.compile(r"step-\d{8,}\.(partial|deleted|replaced)")
_REPLACED = ".replaced"


class Checkpoints:
    """`folder` with one folder for each checkpoint, `step-00000100`.

    It is written as `step-00000100.partial`, with every file and at last a manifest of checksums on the
    disk, and then renamed: what bears the final name is complete. All processes of the run make this object
    at the same place, and call the same methods in the same order, which agree over a group of their own: an
    error in one of them is raised in all. On rank 0 `tell` gets a line for the logbook about each checkpoint
    that is found damaged or unfinished.

    Numbers are kept exactly, as JSON. Nothing in a checkpoint is executed when it is read.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self._settings = settings
        self._ranks = Ranks()
        self._tell = tell if self._ranks.main else _nothing
        self._stager = DefaultStager(_staging()) if settings.background else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._damaged: set[int] = set()
        self._cleaned = False

    def save(self, step: int, tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, in the background if the settings say so: `tensors` and `numbers`
        are copied before this returns, and training may go on.

        `tensors` is a tree as `tensors_of` makes it, `numbers` what JSON holds. It waits for the checkpoint
        before, and raises what went wrong with that one: `DaybreakError` where it could not be written, which
        leaves the older ones as they were.
        """
        self.wait()
        flat, values = flatten(tensors)
        text = json.dumps({"step": step, "numbers": numbers, "values": values}, indent=1)
        if self._stager is None:
            self._write(step, flat, text)
            return
        copied = self._stager.stage(flat)
        assert isinstance(copied, dict)
        self._writing = self._thread.submit(self._write, step, copied, text)

    def wait(self) -> None:
        """Return when no checkpoint is being written. Raises what went wrong with the last one."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def newest(self, before: int | None = None) -> int | None:
        """The step of the newest checkpoint (of a step below `before`) whose files are all as they were
        written; None: there is no checkpoint.

        Damaged ones are told and passed over. Raises `DaybreakError` if all of a run are damaged.
        """
        self.wait()
        steps = self._ranks.first(self._steps_with_replaced())
        found = [step for step in reversed(steps) if before is None or step < before]
        problems = []
        for step in found:
            problem = self._damage(step)
            if problem is None:
                return step
            self._damaged.add(step)
            problems.append(f"{self._at(step)} is damaged: {problem}")
            self._tell(f"{problems[-1]}; it is passed over")
        if problems and before is None:
            raise DaybreakError(
                f"no checkpoint can be used: {'; '.join(problems)}; restore one from elsewhere, or start anew"
            )
        return None

    def steps(self) -> list[int]:
        """Of all complete checkpoints, in their order, unchecked."""
        names = (_COMPLETE.fullmatch(file.name) for file in self._entries())
        return sorted(int(match[1]) for match in names if match)

    def numbers(self, step: int) -> dict[str, Any]:
        """What `save` got as `numbers`."""
        numbers: dict[str, Any] = self._json(step)["numbers"]
        return numbers

    def load(self, step: int, tensors: dict[str, Any]) -> None:
        """Fill the tree `tensors` in place; call `put_back` with it then. Number of processes and layout may
        be others than when it was saved. Raises `DaybreakError` for a checkpoint of another model or
        optimizer.
        """
        self.wait()
        flat, _ = flatten(tensors)
        values = self._json(step)["values"]
        files.read_tensors(self._at(step), flat, self._ranks)
        set_values(tensors, values)

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: the run goes another way from here."""
        self.wait()
        if self._ranks.main:
            self._delete(later for later in self.steps() if later > step)
        self._ranks.gather(None)

    def _write(self, step: int, tensors: dict[str, Tensor], text: str) -> None:
        unfinished = self._at(step, ".partial")
        self._together(step, partial(self._prepare, unfinished))
        parts = self._together(step, partial(files.write_tensors, unfinished, tensors, self._ranks))
        digests = {name: digest for part in parts for name, digest in part.items()}
        self._together(step, partial(self._complete, step, digests, text))
        if self._ranks.main:
            self._delete(self._superfluous(step))

    def _together(self, step: int, action: Callable[[], Any]) -> list[Any]:
        """What `action` returns in each process. If it fails in one, what was begun of the checkpoint is
        removed and all raise the same `DaybreakError`.
        """
        result, problem, cause = None, None, None
        try:
            result = action()
        except Exception as error:
            cause = error
            problem = "" if isinstance(error, files.FailedElsewhere) else files.reason(error)
        outcomes = self._ranks.gather((result, problem))
        problems = [problem for _, problem in outcomes if problem is not None]
        if not problems:
            return [result for result, _ in outcomes]
        if self._ranks.main:
            shutil.rmtree(self._at(step, ".partial"), ignore_errors=True)
        raise DaybreakError(
            f"the checkpoint of step {step} cannot be written to {self.folder}: {max(problems)}; the run "
            f"stops, and {self._ranks.first(self._what_is_left())}"
        ) from cause

    def _what_is_left(self) -> str:
        steps = [step for step in self.steps() if step not in self._damaged]
        return f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"

    def _prepare(self, unfinished: Path) -> None:
        if self._ranks.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
            unfinished.mkdir()

    def _clean(self) -> None:
        """Remove what a process left that was killed, once, and tell."""
        left = [] if self._cleaned else [file for file in self._entries() if _LEFT_OVER.fullmatch(file.name)]
        self._cleaned = True
        for file in left:
            self._tell(f"{file} is left over from a process that was ended, and is removed")
            shutil.rmtree(file)

    def _complete(self, step: int, digests: dict[str, Digest], text: str) -> None:
        """Once every file is on the disk: the last two, and the final name."""
        if not self._ranks.main:
            return
        unfinished, final, replaced = (self._at(step, suffix) for suffix in (".partial", "", _REPLACED))
        digests[NUMBERS] = files.write_text(unfinished / NUMBERS, text)
        files.write_manifest(unfinished, step, digests, self._ranks.size)
        files.sync_folder(unfinished)
        if final.exists():  # a damaged one, or one of a way that was given up
            os.replace(final, replaced)
        os.replace(unfinished, final)
        files.sync_folder(self.folder)
        self._damaged.discard(step)
        shutil.rmtree(replaced, ignore_errors=True)

    def _superfluous(self, written: int) -> list[int]:
        """The checkpoints that need not be kept now that `written` is complete.

        Those known to be damaged go, and do not count among those that are kept: it is the good ones before
        them that the run goes back to.
        """
        good = [step for step in self.steps() if step not in self._damaged]
        # Those that a signal asked for come on top: what a run goes back to does not depend on such.
        regular = [step for step in good if step % self._settings.every == 0]
        keep = {written, *good[-self._settings.keep :], *regular[-self._settings.keep :]}
        if (every := self._settings.keep_every) is not None:
            keep.update(step for step in good if step % every == 0)
        return [step for step in self.steps() if step not in keep]

    def _delete(self, steps: Iterable[int]) -> None:
        for step in steps:
            # Under another name first: a process that is killed meanwhile leaves no half of a checkpoint.
            deleted = self._at(step, ".deleted")
            shutil.rmtree(deleted, ignore_errors=True)
            os.replace(self._at(step), deleted)
            shutil.rmtree(deleted, ignore_errors=True)

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; each process checks a part of the files."""
        problem: str | None = None
        try:
            digests = files.read_manifest(self._at(step), step)
            share = sorted(digests)[self._ranks.rank :: self._ranks.size]
            problem = files.damage(self._at(step), {name: digests[name] for name in share})
        except OSError as error:
            problem = f"{files.MANIFEST} cannot be read: {error.strerror or error}"
        except files.DamagedManifest as error:
            problem = f"{files.MANIFEST} is not as it was written ({error})"
        return next((found for found in self._ranks.gather(problem) if found is not None), None)

    def _steps_with_replaced(self) -> list[int]:
        """All complete checkpoints, also one that was put aside by a process that was killed then."""
        if self._ranks.main:
            for file in self._entries():
                final = file.with_name(file.name.removesuffix(_REPLACED))
                if _LEFT_OVER.fullmatch(file.name) and file.suffix == _REPLACED and not final.exists():
                    os.replace(file, final)
        return self.steps()

    def _json(self, step: int) -> dict[str, Any]:
        file = self._at(step) / NUMBERS
        try:
            value: dict[str, Any] = json.loads(file.read_bytes())
        except OSError as error:
            raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise DaybreakError(f"{file} is damaged ({error}); continue from another checkpoint") from None
        return value

    def _entries(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _at(self, step: int, suffix: str = "") -> Path:
        return self.folder / f"step-{step:08}{suffix}"


def _nothing(line: str) -> None:
    del line


def _staging() -> StagingOptions:
    """The copies stay allocated from one checkpoint to the next: to touch new memory takes as long again."""
    pinned = torch.cuda.is_available()
    return StagingOptions(
        use_pinned_memory=pinned,
        use_shared_memory=False,
        use_async_staging=False,
        use_non_blocking_copy=pinned,
    )
