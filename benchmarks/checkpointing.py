"""What a checkpoint of training costs: how long a step waits for it, how long it is written and checked.

`python benchmarks/checkpointing.py [--layers 6] [--folder /path/on/the/disk]`. Processor time is what these
take whatever else the machine does; the clock says how long that was here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import daybreak
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.optimizers import optimizers
from daybreak.train.settings import CheckpointSettings, OptimizerSettings
from daybreak.train.state import put_back, tensors_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="of GPT-2 small")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; a temporary one if left out"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(options.layers, Path(folder))


def measure(layers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    decoder = daybreak.create("gpt2", layers=layers).decoder
    chosen = optimizers(decoder, OptimizerSettings())
    average = {name: one.detach().clone() for name, one in decoder.named_parameters()}
    state = tensors_of(decoder, chosen, average)
    kept = Checkpoints(folder, CheckpointSettings(keep=1), print)
    kept.save(0, state, {})
    kept.wait()
    first = folder / "step-00000000"
    size = sum(file.stat().st_size for file in first.iterdir()) / 1e9
    print(f"{sum(one.numel() for one in decoder.parameters()) / 1e6:.0f}M parameters, {size:.2f} GB")
    for step in (1, 2, 3):
        timed("a step waits", size, lambda step=step: kept.save(step, state, {}))
        timed("written beside it", size, kept.wait)
    for _ in range(3):
        timed("checked", size, lambda: kept.newest())
    timed("read", size, lambda: (kept.load(3, state), put_back(state, decoder, chosen, average)))


def timed(what: str, size: float, action: Callable[[], object]) -> None:
    clock, processor = time.perf_counter(), time.process_time()
    action()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"{what:18} {processor / size:6.2f} s of processor time per GB, {clock / size:6.2f} s by the clock")


if __name__ == "__main__":
    main()
