"""Loading time and peak memory of daybreak beside transformers, each load in a process of its own.

    python benchmarks/loading.py [--repeats 5] [--models gpt2 pythia-410m bloom-560m]

Random weights of the published shapes are saved once into a temporary folder; then the two take turns. "load"
is until the model is there, "first logits" until it has read a text of 32 tokens, because mapped weights are
read when they are touched. "peak" is the resident memory above what the process had after its imports, as the
kernel counts it (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = {"gpt2": "gpt2", "pythia-410m": "gpt_neox", "bloom-560m": "bloom"}
CASES = (
    ("gpt2", "float32", "float32"),
    ("gpt2", "float16", "float32"),
    ("gpt2", "float32", "bfloat16"),
    ("pythia-410m", "float16", "float16"),
    ("pythia-410m", "float32", "float32"),
    ("bloom-560m", "float16", "float32"),
    ("bloom-560m", "float32", "float32"),
)
"""Published shape, dtype in the file, dtype wanted."""
SIDES = ("daybreak", "transformers")


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        side, folder, dtype = arguments.child
        print(json.dumps(measure(side, folder, dtype)))
        return
    cases = [case for case in CASES if case[0] in arguments.models]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folders = {case[:2]: _saved(Path(scratch), *case[:2]) for case in cases}
        print(
            f"{'shape':12} {'file -> memory':20} {'':13} {'load':>7} {'first logits':>13} {'peak':>9} "
            f"{'peak/weights':>13}"
        )
        for name, stored, wanted in cases:
            _report(name, stored, wanted, folders[name, stored], arguments.repeats)


def _report(name: str, stored: str, wanted: str, folder: Path, repeats: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(in_subprocess(side, folder, wanted))
    for side in SIDES:
        load, first, peak, weights = (
            statistics.median(run[key] for run in runs[side]) for key in ("load", "first", "peak", "weights")
        )
        print(
            f"{name:12} {stored + ' -> ' + wanted:20} {side:13} {load:6.2f}s {first:12.2f}s "
            f"{peak / 1e6:6.0f} MB {peak / weights:12.2f}x",
            flush=True,
        )


def in_subprocess(side: str, folder: Path, dtype: str) -> dict[str, float]:
    """One load in a fresh process; see `measure`."""
    command = [sys.executable, __file__, "--child", side, str(folder), dtype]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def measure(side: str, folder: str, dtype: str) -> dict[str, float]:
    """Seconds to load and to the first logits, bytes of peak memory while loading and of the weights."""
    import torch

    load = _daybreak if side == "daybreak" else _transformers
    logits = load(None, dtype)  # the imports, before the clock starts
    before = _kernel("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    start = time.perf_counter()
    logits, weights = load(folder, dtype)
    loaded = time.perf_counter() - start
    peak = _kernel("VmHWM") - before
    with torch.no_grad():
        logits(torch.arange(32)[None])
    return {"load": loaded, "first": time.perf_counter() - start, "peak": peak, "weights": weights}


def _daybreak(folder, dtype):  # type: ignore[no-untyped-def]
    import daybreak.language_model as library

    if folder is None:
        return None
    model = library.load(folder, dtype=dtype)
    return model.logits, _bytes(model.decoder)


def _transformers(folder, dtype):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM
    from transformers.models.bloom import modeling_bloom  # noqa: F401  so that imports are not timed
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401

    if folder is None:
        return None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model, _bytes(model)


def _bytes(module) -> int:  # type: ignore[no-untyped-def]
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _kernel(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _saved(scratch: Path, name: str, dtype: str) -> Path:
    folder = scratch / f"{name}-{dtype}"
    if not folder.exists():
        code = (
            "import daybreak, sys; name, family, dtype, folder = sys.argv[1:];"
            "daybreak.create(family, size=name, dtype=dtype).save(folder)"
        )
        subprocess.run([sys.executable, "-c", code, name, MODELS[name], dtype, str(folder)], check=True)
    return folder


def _arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--folder", help="where to put the temporary checkpoints (up to 7 GB)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
