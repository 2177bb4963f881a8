"""Where a model fits, and how fast it can write at most: arithmetic on its shapes and a few short
measurements of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from daybreak import settings
from daybreak.architecture import Architecture
from daybreak.checkpoint.config import CONFIG, own_quantisation, read_config
from daybreak.checkpoint.fill import empty_decoder
from daybreak.checkpoint.folder import DTYPES
from daybreak.compare import speeds
from daybreak.compare.subject import Subject, find
from daybreak.engine.memory import available, left_of_group
from daybreak.engine.pages import BYTES, PAGE, PageLayout
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_linear import Quantiser
from daybreak.errors import DaybreakError

FORMATS: dict[str, str | Scheme] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": Scheme.usual(8),
    "int4": Scheme.usual(4),
}
"""What weights are held as: a dtype, or a scheme, beside which everything else is float32."""
SMALLER = ("int8", "int4")
"""Formats that are told with the token embedding in few bits as well."""
BESIDE = 400 << 20
"""Bytes that a process needs beside weights and cache: Python and torch, and what is on its way."""
SHORT = 256
"""Tokens, or the context, that a text must be allowed to have."""
Verdict = Literal["fits", "from disk", "too large"]


@dataclass(frozen=True)
class Weights:
    """Bytes of a decoder."""

    held: int
    read: int
    """Of these, what the decoder reads for each token: all but tables in which it looks up a row."""
    kept: int
    """What must be in memory even where matrices come from a disk: the tables, and two layers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the machine or a GPU."""

    total: int
    free: int
    """What could be had now; pages that are kept of files count, for they are given back."""
    limited: bool
    """A control group (a container, a job of a scheduler, a service) leaves less than the machine has."""


@dataclass(frozen=True)
class Machine:
    """What was measured of this one."""

    memory: Memory
    speed: float
    """Bytes of memory per second."""
    disk: float | None
    """Bytes per second of the disk with the folder; None: there is none, or it cannot be measured."""
    gpu: Memory | None = None
    gpu_name: str | None = None
    gpu_speed: float | None = None


def fits(name: str, machine: Machine | None = None) -> dict[str, Any]:
    """The model or folder called `name` beside this machine (or a given one).

    Keys: `memory` (total, free, limited), `gpu` (name, total, free, or None), `speeds` (memory, gpu, disk:
    bytes per second, or None), `context`, `beside_bytes`, `cache` (by what keys and values are kept as: bytes
    per_token and of the whole context), `formats`: for each `format` weight_bytes, read_bytes_per_token,
    cache_dtype, cache_bytes, verdict, tokens_that_fit, tokens_per_second at most (short, whole_context,
    from_disk, gpu), and on_gpu. Raises `DaybreakError` where nothing is called so, or a whole family is.
    """
    subject = find(name)
    if subject.kind == "family":
        sizes = ", ".join(subject.family.sizes)
        raise DaybreakError(f"{name} is a family, and has no size of its own; name one of {sizes}")
    here = machine or this_machine(Path(name) if subject.kind == "folder" else None)
    return {
        "memory": vars(here.memory),
        "gpu": here.gpu and {"name": here.gpu_name, **vars(here.gpu)},
        "speeds": {"memory": here.speed, "gpu": here.gpu_speed, "disk": here.disk},
        "context": subject.architecture.context,
        "beside_bytes": BESIDE,
        "cache": {stored: cache(subject.architecture, stored) for stored in BYTES},
        "formats": [
            _verdict(one, kind, subject.architecture, here) for one, kind in _formats(subject).items()
        ],
    }


def this_machine(place: Path | None) -> Machine:
    """Measured in about a second; `place` is a file or folder with weights."""
    total, free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), available(torch.device("cpu"))
    files = [] if place is None else [place] if place.is_file() else _weight_files(place)
    disk = speeds.disk_speed(files[0]) if files else None
    found = Machine(Memory(total, free, left_of_group() == free), speeds.memory_speed(free), disk)
    if not torch.cuda.is_available():
        return found
    left, total = torch.cuda.mem_get_info()
    name, speed = torch.cuda.get_device_name(), speeds.memory_speed(left, "cuda")
    return replace(found, gpu=Memory(total, left, False), gpu_name=name, gpu_speed=speed)


def _weight_files(folder: Path) -> list[Path]:
    files = [file for kind in ("safetensors", "bin", "gguf") for file in folder.glob(f"*.{kind}")]
    return sorted(files, key=lambda file: -file.stat().st_size)


def _formats(subject: Subject) -> Mapping[str, str | Scheme]:
    """The usual ones, those with the embedding in few bits, and a quantised folder's if it is another."""
    found = dict(FORMATS)
    for name in SMALLER:
        scheme = FORMATS[name]
        assert isinstance(scheme, Scheme)
        found[f"{name}, embeddings too"] = replace(scheme, embeddings=True)
    told = own_quantisation(read_config(Path(subject.name))) if _is_folder(subject) else None
    if told is not None:
        own = settings.build(Scheme, told, f"{Path(subject.name) / CONFIG}")
        found.update({} if own in found.values() else {f"int{own.bits}, as in the folder": own})
    return found


def _is_folder(subject: Subject) -> bool:
    return subject.kind == "folder" and (Path(subject.name) / CONFIG).is_file()


def weights(architecture: Architecture, kind: str | Scheme) -> Weights:
    """Bytes of a decoder in a dtype, or with a scheme's matrices and the rest in float32."""
    decoder = empty_decoder(replace(architecture, layers=1))  # all layers have the same shapes
    if isinstance(kind, Scheme):
        Quantiser(decoder, kind)
    else:
        decoder.to(DTYPES[kind])
    layer = _bytes(decoder.blocks[0])
    held = _bytes(decoder) + (architecture.layers - 1) * layer
    tables = [decoder.tokens] if isinstance(kind, Scheme) or not architecture.tied else []
    tables += [getattr(decoder, name) for name in ("positions", "block_positions") if hasattr(decoder, name)]
    looked_up = sum(map(_bytes, tables))
    return Weights(held, held - looked_up, min(held, looked_up + 2 * layer))


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def cache(architecture: Architecture, stored: str) -> dict[str, int]:
    """Bytes of keys and values of one text: for each token, and of all that a text as long as the context
    keeps (less where layers see a window).
    """
    layout = PageLayout.of(architecture, stored)
    token = architecture.layers * layout.layer_bytes // PAGE
    return {"per_token": token, "context": layout.bytes_for(architecture.context)}


def _verdict(name: str, kind: str | Scheme, architecture: Architecture, machine: Machine) -> dict[str, Any]:
    held = weights(architecture, kind)
    stored = kind if isinstance(kind, str) else "float32"
    layout, context = PageLayout.of(architecture, stored), architecture.context
    short, left = min(SHORT, context), machine.memory.free - BESIDE
    verdict: Verdict = "fits"
    tokens = _tokens_in(layout, context, left - held.held)
    if tokens < short:
        verdict, tokens = "from disk", _tokens_in(layout, context, left - held.kept)
    if tokens < short:
        verdict, tokens = "too large", 0
    gpu = machine.gpu if isinstance(kind, str) else None  # weights of few bits are for the CPU
    on_gpu = None if gpu is None else _tokens_in(layout, context, gpu.free - BESIDE - held.held) >= short
    return {
        "format": name,
        "weight_bytes": held.held,
        "read_bytes_per_token": held.read,
        "cache_dtype": stored,
        "cache_bytes": layout.bytes_for(context),
        "verdict": verdict,
        "tokens_that_fit": tokens,
        "tokens_per_second": {
            "short": machine.speed / held.read,
            "whole_context": machine.speed / (held.read + _read_cache(architecture, stored)),
            "from_disk": machine.disk and machine.disk / held.read,
            "gpu": machine.gpu_speed and gpu and machine.gpu_speed / held.read,
        },
        "on_gpu": on_gpu,
    }


def _read_cache(architecture: Architecture, stored: str) -> int:
    """Bytes of keys and values that are read for the last token of a text as long as the context."""
    token = PageLayout.of(architecture, stored).layer_bytes // PAGE
    seen = (architecture.window(layer) for layer in range(architecture.layers))
    return sum(min(window or architecture.context, architecture.context) * token for window in seen)


def _tokens_in(layout: PageLayout, context: int, room: int) -> int:
    """How long a text may be, up to the context."""
    low, high = 0, context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if layout.bytes_for(middle) <= room else (low, middle - 1)
    return low
