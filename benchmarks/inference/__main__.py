"""Inference beside transformers, CTranslate2 and llama.cpp on this machine, in turns.

Time to the first token, prefill and decoding, memory, loading and cold start, of the same weights in every
engine, with the speed at which memory is read as the roof. `make bench` runs it in an environment of its own.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.inference import page, picture, table
from benchmarks.inference.configurations import known, of_shape
from benchmarks.inference.figures import Report
from benchmarks.inference.measure import Bench
from benchmarks.inference.roof import Roof
from benchmarks.inference.rounds import Plan
from benchmarks.inference.shapes import shapes

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "performance.md", DOCS / "inference.svg"
KEPT = DOCS.parent / "build" / "bench.json"
"""Every sample so far, for `--read`, should a run not come to its end."""
PACKAGES = ("daybreak", "torch", "transformers", "ctranslate2", "xllamacpp")
QUICK: dict[str, Any] = {
    "prompt": 32,
    "together": 8,
    "prefill": 64,
    "new": (8, 4, 4),
    "warm": False,
    "rounds": (1, 1),
    "cold": 0,
}


def main() -> None:
    options = parsed()
    if options.read is not None:
        found = Report.from_json(json.loads(options.read.read_text(encoding="utf-8")))
    else:
        found = measured(options)
    print(json.dumps(found.to_json(), indent=1) if options.json else table.report(found), flush=True)
    if options.write:
        picture.draw(found, PICTURE)
        link = f"![Prefill and decoding of every shape and engine]({PICTURE.name})"
        page.write(PAGE, f"{table.report(found)}\n\n{link}")


def measured(options: argparse.Namespace) -> Report:
    """All shapes, one after another, each with its share of the time that is left."""
    plan = Plan(options.threads, **(QUICK if options.quick else {}))
    report = Report(machine(), asdict(plan), [])
    roof, end = Roof(plan.threads), time.monotonic() + 60 * options.minutes
    for number, shape in enumerate(options.shapes):
        costs = [each.cost for each in options.shapes[number:]]
        now = time.monotonic()
        until = now + (end - now) * shape.cost / sum(costs)
        bench = Bench(plan, roof, options.folder, saying(shape.name))
        try:
            report.shapes.append(bench.measure(shape, of_shape(shape, options.engines), until))
        except KeyboardInterrupt:  # what was measured is told, if anything was
            if not report.shapes:
                raise
            break
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(report.to_json()), encoding="utf-8")
    return report


def saying(name: str) -> Callable[[str], None]:
    """Tells people who wait how far it is."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{name} {time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    return say


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    widest = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in text.split()), "")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": " with ".join(filter(None, [found[1] if found else platform.processor(), widest])),
        "cores": cores(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_asked() -> int:
    """OMP_NUM_THREADS, or as many as there are cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or cores())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does everything run?")
    parser.add_argument("--shapes", help=f"some of {', '.join(shapes())}, separated by commas")
    parser.add_argument("--engines", default="", help="such as daybreak,ctranslate2 or llama.cpp-q8_0")
    parser.add_argument("--minutes", type=float, default=20, help="about how long; more rounds fit into more")
    parser.add_argument("--threads", type=int, default=threads_asked(), help="of every engine")
    parser.add_argument("--folder", type=Path, help="where up to 9 GB of weights are written for a while")
    parser.add_argument("--json", action="store_true", help="every sample, instead of the tables")
    parser.add_argument("--write", action="store_true", help=f"into docs/{PAGE.name} and docs/{PICTURE.name}")
    parser.add_argument("--read", type=Path, help="measure nothing: build/bench.json, or what --json printed")
    options = parser.parse_args()
    names = options.shapes.split(",") if options.shapes else list(shapes())
    options.engines = [name for name in options.engines.split(",") if name]
    wrong = [name for name in names if name not in shapes()]
    for name in [*wrong, *(name for name in options.engines if not known(name))]:
        parser.error(f"{name!r} is not known here")
    options.shapes = [shapes()[name] for name in names]
    return options


if __name__ == "__main__":
    main()
