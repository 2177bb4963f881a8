"""A model whose weights are three times as large as the memory that it may have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from daybreak import families
from daybreak.checkpoint.config import CONFIG, METHOD, QUANTISED, saved_config
from daybreak.checkpoint.fill import empty_decoder
from daybreak.checkpoint.save import Written, to_json, write_folder
from daybreak.engine.kernels.build import library
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_linear import Quantiser

MIB = 1 << 20
LIMIT = 320 * MIB
"""Python, torch and what generation needs of its own take two thirds of it."""
SHAPE = {"vocabulary": 1000, "context": 128, "layers": 20, "width": 2048, "heads": 16, "inner": 8192}
WRITES = """
import sys, daybreak
model = daybreak.load(sys.argv[1])
print(model.generate([[1, 2, 3]], max_new_tokens=3, ignore_eos=True)[0].tokens, model.engine()._step.streamed)
"""


def write_random(folder: Path) -> int:
    """A folder as `daybreak quantize` writes it, with numbers that nobody trained; returns its bytes."""
    family = families.by_name("gpt2")
    architecture = family.architecture(**SHAPE)
    decoder, scheme = empty_decoder(architecture), Scheme.usual(8)
    Quantiser(decoder, scheme)
    noise = torch.randint(1, 256, (1 << 20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def chunks(name: str, tensor: Tensor) -> Iterator[Tensor]:
        if tensor.dtype == torch.uint8:
            rows = noise[: tensor[0].numel()].view(tensor[0].shape)
            yield from (rows.roll(number, 0)[None] for number in range(len(tensor)))
        elif "scales" in name:
            yield torch.full(tensor.shape, 0.0003)
        else:
            yield torch.randn(tensor.shape) if "tokens" in name else torch.ones(tensor.shape)

    written = [
        Written(
            name, tensor.dtype, tuple(tensor.shape), lambda name=name, tensor=tensor: chunks(name, tensor), 64
        )
        for name, tensor in decoder.state_dict().items()
    ]
    config = saved_config(family, architecture, {}, "float32")
    folder.mkdir()
    write_folder(folder, written, {CONFIG: to_json({**config, QUANTISED: {**METHOD, **asdict(scheme)}})})
    return sum(one.bytes for one in written)


@contextmanager
def group(limit: int) -> Iterator[Path]:
    """A control group of processes that may have so many bytes, pages of files included."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    folder = (root / "memory" if first else root) / f"daybreak-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def reclaimed(folder: Path) -> bool:
    """Has anything been taken away for want of memory?"""
    if (folder / "memory.failcnt").exists():
        return int((folder / "memory.failcnt").read_text()) > 0
    return "max 0\n" not in (folder / "memory.events").read_text()


def forget(folder: Path) -> None:
    """What the system keeps of the files in memory counts for those who read it first."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(folder: Path, inside: Path | None) -> str:
    command = [sys.executable, "-c", WRITES, str(folder)]
    if inside is not None:
        command = ["sh", "-c", f'echo $$ > "{inside}/cgroup.procs" && exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(library().functions is None, reason=library().about)
def test_a_model_three_times_the_memory_writes_the_same(tmp_path: Path) -> None:
    with group(LIMIT) as inside:
        size = write_random(tmp_path / "model")
        assert size > 3 * LIMIT
        expected = run(tmp_path / "model", None)
        assert json.loads(expected.split("]")[0] + "]") and expected.endswith("False\n")
        forget(tmp_path / "model")
        assert run(tmp_path / "model", inside) == expected.replace("False", "True")
        assert reclaimed(inside)
