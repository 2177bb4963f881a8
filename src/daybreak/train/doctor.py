"""What a training run needs, and whether this machine, and the others of the run, have it."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import distributed

from daybreak.data.token_shards import TokenSet
from daybreak.engine.kernels.build import library
from daybreak.errors import DaybreakError
from daybreak.train.compiled import compiler
from daybreak.train.world import Place

State = Literal["ok", "warning", "problem"]
ORDER: tuple[State, ...] = ("ok", "warning", "problem")
MEETING = "processes"
"""The check that is there if the processes of a run could not meet."""
FILES = 1024
"""Open files that a run may come to need: two per open shard, and those of the libraries."""
PROBE = 64 * 2**20
"""Bytes that are written to measure a disk."""
SLOW = 50 * 2**20
"""Bytes per second below which checkpoints take long."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    """ok; warning: a run will work, but slower or less safely; problem: it would stop."""
    found: str
    remedy: str | None = None


def examine(
    data: Path | None = None, out: Path | None = None, environment: Mapping[str, str] = os.environ
) -> list[Check]:
    """All checks of this process and, started by torchrun or srun, of all of them: rank 0 gets the whole
    list, the others their own part of it.

    `data` is a folder of token shards, `out` the run's folder, which may be there already.
    """
    try:
        place = Place.of(environment)
    except DaybreakError as error:
        return [*local_checks(data, out, 1), Check(MEETING, "problem", str(error))]
    own = local_checks(data, out, 1 if place is None else place.size)
    if place is None or place.size == 1:
        return own
    from daybreak.train.doctor_ranks import together

    return together(place, own, out)


def local_checks(data: Path | None, out: Path | None, processes: int) -> list[Check]:
    """What one process finds out by itself."""
    found = [_software(), _devices(), _compiler(), _kernels(), _backends(processes), _open_files()]
    if data is not None:
        found += _data(data)
    if out is not None:
        found += _disk(out, data)
    return found


def worst(checks: Sequence[Check]) -> State:
    """The worst state of all."""
    return max((check.state for check in checks), key=ORDER.index, default="ok")


def lines(checks: Sequence[Check]) -> list[str]:
    """The checks for people: state, name, what was found, and the remedy on a line of its own."""
    width = max(len(check.name) for check in checks)
    told = []
    for check in checks:
        told.append(f"{check.state:<8} {check.name:<{width}}  {check.found}")
        if check.remedy is not None:
            told.append(f"{'':<8} {'':<{width}}  {check.remedy}")
    return told


def _software() -> Check:
    return Check("software", "ok", f"Python {platform.python_version()}, PyTorch {torch.__version__}")


def _devices() -> Check:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        told = ", ".join(f"{one.name} ({one.total_memory / 2**30:.0f} GiB)" for one in names)
        return Check("devices", "ok", told)
    told = f"no GPU; {torch.get_num_threads()} threads on the CPU"
    if shutil.which("nvidia-smi") is None:
        return Check("devices", "ok", told)
    remedy = "nvidia-smi is there: this PyTorch is built without CUDA, or the driver is too old for it"
    return Check("devices", "warning", told, remedy)


def _compiler() -> Check:
    found = compiler()
    if found is not None:
        return Check("compiler", "ok", found)
    remedy = "steps will not be compiled and take longer; install g++ or clang++, or name one in CXX"
    return Check("compiler", "warning", "there is no C++ compiler", remedy)


def _kernels() -> Check:
    """Training does not need them; a model with weights of few bits does."""
    found = library()
    if found.functions is not None:
        return Check("kernels", "ok", f"compiled for {found.about}")
    remedy = "models with weights of 8 or 4 bits will run in torch, slowly"
    return Check("kernels", "warning", f"none: {found.about}", remedy)


def _backends(processes: int) -> Check:
    tests = {
        "gloo": distributed.is_gloo_available,
        "nccl": distributed.is_nccl_available,
        "mpi": distributed.is_mpi_available,
    }
    known = [name for name, test in tests.items() if distributed.is_available() and test()]
    told = ", ".join(known) or "none"
    needed = {"gloo", "nccl"} if torch.cuda.is_available() else {"gloo"}
    if needed <= set(known):
        return Check("backends", "ok", told)
    remedy = f"several processes need {' and '.join(sorted(needed))}: install another build of PyTorch"
    return Check("backends", "problem" if processes > 1 else "warning", told, remedy)


def _open_files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}"
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return Check("open files", "ok", told)
    may = hard == resource.RLIM_INFINITY or hard >= FILES
    remedy = f"ulimit -n {FILES}" if may else f"ask for a limit of {FILES} (the hard limit is {hard:,})"
    return Check("open files", "warning", told, remedy)


def _data(folder: Path) -> Iterator[Check]:
    try:
        sets = [TokenSet.open(folder, split, verify=True) for split in ("training", "validation")]
    except (DaybreakError, OSError) as error:
        yield Check("data", "problem", str(error))
        return
    tokens = ", ".join(f"{sum(one.tokens for one in data.sources):,} {data.split}" for data in sets)
    yield Check("data", "ok", f"{tokens} tokens; all checksums hold")
    try:
        tokenizer = sets[0].tokenizer()
        tokenizer.encode("a b")
        yield Check("tokenizer", "ok", f"{sets[0].vocabulary:,} entries")
    except (DaybreakError, OSError) as error:
        yield Check("tokenizer", "problem", str(error))


def _disk(out: Path, data: Path | None) -> Iterator[Check]:
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    try:
        speed = _write_speed(there, min(PROBE, free // 2))
    except OSError as error:
        yield Check(
            "disk", "problem", f"{there} cannot be written to: {error.strerror}", "give another --out"
        )
        return
    told = f"{free / 2**30:.1f} GiB free, written at {speed / 2**20:.0f} MiB/s"
    needed = _needed(out, data)
    if needed is not None:
        told += f"; the run needs {needed / 2**30:.2f} GiB"
        if needed > free:
            remedy = "lower checkpoints.keep, or give --out on a larger disk"
            yield Check("disk", "problem", told, remedy)
            return
    if speed < SLOW:
        yield Check("disk", "warning", told, "checkpoints will take long; give --out on a faster disk")
        return
    yield Check("disk", "ok", told)


def _write_speed(folder: Path, size: int) -> float:
    """Bytes per second that reach the disk."""
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return file.tell() / (time.perf_counter() - began)


def _needed(out: Path, data: Path | None) -> int | None:
    """Bytes on disk of the run that `out` holds; None: there is none, so nobody knows what it will be."""
    from daybreak.train import run_folder
    from daybreak.train.given import estimated

    with suppress(DaybreakError):
        settings = run_folder.stored(out)
        if settings is not None:
            if data is not None:
                settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, folder=data))
            return estimated(settings).disk
    return None
