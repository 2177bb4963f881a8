"""The compiled kernels: built for this processor with the machine's own compiler, kept in the user's cache.

Nothing depends on them: without a compiler, or where compiling fails, everything runs in torch, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("linear.cpp", "step.cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-ffp-contract=off",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-Wno-psabi",
)
OFF = "DAYBREAK_KERNELS"
"""Set to 0, everything runs in torch."""


@dataclass(frozen=True)
class Library:
    """What came of building."""

    functions: ctypes.CDLL | None
    """None: there are none."""
    about: str
    """Which instructions they use, or why there are none."""


@functools.cache
def library() -> Library:
    """The kernels, built at the first call on this machine (some seconds) and found again later."""
    if os.environ.get(OFF) == "0":
        return Library(None, f"{OFF}=0 says so")
    compiler = _compiler()
    if compiler is None:
        return Library(None, "there is no C++ compiler (g++ or clang++) on this machine")
    try:
        functions, alone = _loaded(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, f"building them with {compiler} failed: {_first_line(error)}")
    functions.instructions.restype = ctypes.c_char_p
    return Library(functions, functions.instructions().decode() + alone)


def _loaded(compiler: str) -> tuple[ctypes.CDLL, str]:
    """The library; where it cannot be kept, from a folder of this process alone, and a word about that."""
    file = _file(compiler)
    try:
        _build(compiler, file)
        return ctypes.CDLL(str(file)), ""
    except OSError as error:
        with tempfile.TemporaryDirectory(prefix="daybreak-kernels-") as name:
            own = Path(name) / file.name
            _build(compiler, own)
            alone = f", compiled for this process alone, as they cannot be kept: {error}"
            return ctypes.CDLL(str(own)), alone


def _names() -> tuple[str | None, ...]:
    return (os.environ.get("CXX"), "g++", "clang++")


def ready() -> bool:
    """Is nothing left to be built?"""
    compiler = _compiler()
    return os.environ.get(OFF) == "0" or compiler is None or _file(compiler).exists()


def _compiler() -> str | None:
    return next((found for name in _names() if name and (found := shutil.which(name))), None)


def _build(compiler: str, file: Path) -> None:
    """Have the library in `file`. It is written under another name first: several processes may build it at
    once."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".building-") as name:
            unfinished = Path(name) / file.name
            objects = [str(unfinished.with_suffix(f".{source}.o")) for source in SOURCES]
            _run_all(
                [compiler, *FLAGS, "-c", str(HERE / source), "-o", object_]
                for source, object_ in zip(SOURCES, objects, strict=True)
            )
            _run_all([[compiler, *FLAGS, "-shared", *objects, "-o", str(unfinished)]])
            os.replace(unfinished, file)


def _run_all(commands: Iterable[list[str]]) -> None:
    """At the same time."""
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, errors in zip(running, told, strict=True):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=errors)


def _file(compiler: str) -> Path:
    digest = hashlib.sha256("\0".join((*_machine(), compiler, *FLAGS)).encode())
    for source in (*(HERE / name for name in SOURCES), *sorted(HERE.glob("*.h"))):
        digest.update(source.read_bytes())
    return _cache() / f"kernels-{digest.hexdigest()[:20]}.so"


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "daybreak" / "kernels"


def _machine() -> tuple[str, ...]:
    """What -march=native depends on: a home folder may be shared by different machines."""
    found = [platform.machine()]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (*found, platform.processor(), platform.node())
    for key in ("model name", "flags", "Features"):
        if match := re.search(rf"^{key}\s*:(.*)$", text, re.MULTILINE):
            found.append(match[1])
    return tuple(found)


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "stderr", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
