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
from dataclasses import dataclass
from pathlib import Path

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
    compiler = next((found for name in _names() if name and (found := shutil.which(name))), None)
    if compiler is None:
        return Library(None, "there is no C++ compiler (g++ or clang++) on this machine")
    try:
        functions = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        return Library(None, f"building them with {compiler} failed: {_first_line(error)}")
    functions.instructions.restype = ctypes.c_char_p
    return Library(functions, functions.instructions().decode())


def _names() -> tuple[str | None, ...]:
    return (os.environ.get("CXX"), "g++", "clang++")


def _built(compiler: str) -> Path:
    """The library's file. It is written under another name first: several processes may build it at once."""
    here = Path(__file__).parent
    sources = [here / name for name in SOURCES]
    digest = hashlib.sha256("\0".join((*_machine(), compiler, *FLAGS)).encode())
    for source in (*sources, *sorted(here.glob("*.h"))):
        digest.update(source.read_bytes())
    folder = _cache()
    file = folder / f"kernels-{digest.hexdigest()[:20]}.so"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as name:
            unfinished = Path(name) / file.name
            command = [compiler, *FLAGS, *map(str, sources), "-o", str(unfinished)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            os.replace(unfinished, file)
    return file


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
