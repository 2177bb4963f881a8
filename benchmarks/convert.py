"""Peak memory and time of `daybreak convert` on shards of GLM-130B's design, scaled down.

Writes random shards, converts them in a process of its own, and samples that process's anonymous memory: what
it holds beyond pages of files.

    python benchmarks/convert.py [--ranks 8] [--bits 4] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from daybreak import families, parameters
from daybreak.checkpoint.fill import expected_shapes

MEDIUM = {"vocabulary": 32768, "layers": 24, "width": 2048, "heads": 16, "inner": 5632}
"""About 103 MB a layer and 2.6 GB in all in float16."""
SMALL = {"vocabulary": 1024, "layers": 3, "width": 1024, "heads": 8, "inner": 2816}
"""About 26 MB a layer."""
TINY = {"vocabulary": 64, "layers": 1, "width": 128, "heads": 1, "inner": 128}
"""Converted first, so that imports are not counted."""
EVERY = 0.002
"""Seconds between samples."""


def write_shards_of(shape: Mapping[str, Any], folder: Path, ranks: int, bits: int | None = None) -> int:
    """Random shards, one at a time. Returns their bytes."""
    family = families.by_name("glm_130b")
    architecture = family.architecture(**shape)
    release = family.shard_release
    assert release is not None
    inside = folder / "1"
    inside.mkdir(parents=True)
    (folder / "latest").write_text("1")
    shapes = {
        name: form
        for name, form in expected_shapes(family, architecture).items()
        if name.startswith(family.prefix)
    }
    whole = {name: torch.randn(form).half() for name, form in shapes.items() if len(form) == 1}
    total = 0
    for rank in range(ranks):
        held = {}
        for name, form in shapes.items():
            line = re.sub(r"\.\d+\.", ".{i}.", name.removeprefix(family.prefix))
            cut = release.cuts.get(line)
            piece = cut.piece(form, ranks) if cut else form
            packs = bits is not None and len(piece) == 2 and "layers" in name
            if packs:
                columns = piece[1] * (bits or 8) // 8
                held[name] = torch.randint(-128, 128, (piece[0], columns), dtype=torch.int8)
                held[f"{name}_scale"] = torch.rand(piece[0]).half() / 1000
            else:
                held[name] = whole[name] if cut is None else (0.02 * torch.randn(piece)).half()
        file = inside / f"mp_rank_{rank:02}_model_states.pt"
        torch.save({"module": held}, file)
        total += file.stat().st_size
    return total


def layer_bytes(shape: Mapping[str, Any], dtype: str) -> int:
    """Of the weights of one layer."""
    architecture = families.by_name("glm_130b").architecture(**shape)
    parts = parameters.breakdown(architecture)
    return (parts.attention + parts.mlp) // architecture.layers * parameters.BITS[dtype] // 8


def anonymous() -> int:
    """Bytes of this process's memory that are no pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])  # type: ignore[index]


def anonymous_peak(work: Callable[[], Any]) -> int:
    """The most anonymous memory while `work` runs beyond that before, sampled every `EVERY` seconds."""
    before, peak, done = anonymous(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(0, peak - before)


def measure(source: Path, destination: Path) -> dict[str, float]:
    """Of one conversion: bytes of peak anonymous memory beyond the imports, these, and seconds."""
    from daybreak.checkpoint.convert import convert

    with tempfile.TemporaryDirectory() as name:
        write_shards_of(TINY, Path(name) / "shards", 2, 8)
        convert(Path(name) / "shards", Path(name) / "out")
    imports, start = anonymous(), time.perf_counter()
    peak = anonymous_peak(lambda: convert(source, destination))
    return {"peak": peak, "imports": imports, "seconds": time.perf_counter() - start}


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--ranks", type=int, default=8)
    reader.add_argument("--bits", type=int, choices=(4, 8))
    reader.add_argument("--folder", type=Path, help="where the files go; default: the system's for such")
    reader.add_argument("--json", action="store_true")
    reader.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    settings = reader.parse_args()
    if settings.measure:
        print(json.dumps(measure(*settings.measure)))
        return
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        place = Path(name)
        read = write_shards_of(MEDIUM, place / "shards", settings.ranks, settings.bits)
        command = [sys.executable, __file__, "--measure", str(place / "shards"), str(place / "out")]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        written = sum(file.stat().st_size for file in (place / "out").iterdir())
    told.update(ranks=settings.ranks, bits=settings.bits, read=read, written=written)
    told["layer"] = layer_bytes(MEDIUM, "float16")
    if settings.json:
        print(json.dumps(told, indent=2))
        return
    packed = f", packed to {settings.bits} bits" if settings.bits else ""
    print(f"shards                 {settings.ranks}{packed}, {read / 1e6:.0f} MB")
    print(
        f"written                {written / 1e6:.0f} MB in float16, a layer is {told['layer'] / 1e6:.0f} MB"
    )
    beyond = f"{told['peak'] / 1e6:.0f} MB beyond the {told['imports'] / 1e6:.0f} MB of the imports"
    print(f"peak anonymous memory  {beyond}")
    print(f"time                   {told['seconds']:.1f} s")


if __name__ == "__main__":
    main()
