"""Speed and memory of training steps beside transformers: the same weights and tokens, in turns, medians.

    python benchmarks/training.py --shapes gpt2,pythia-160m --rounds 5 --batch 4 --length 256 --dtype float32

Both sides stand in one process: daybreak's compiled loss, and transformers' model in the plain loop that one
would write (autocast, fused AdamW, no dropout); `--compile-theirs` compiles its forward pass as well. A turn
of one side is a step that warms up and `--steps` that are timed; the sides' turns alternate, and between
rounds the machine's ceiling is measured: the FLOP/s of a large matrix product in the same dtype. FLOPs of the
model are those of `daybreak.train.flops`, without what is computed a second time.

Without options the shapes fit the device: on a processor gpt2, pythia-160m and bloom-560m, on a GPU
gpt2-medium, gpt2-xl, pythia-1.4b and bloom-1b1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import daybreak
from daybreak.families import find_size
from daybreak.objectives.causal import Causal
from daybreak.objectives.summed import loss_sum
from daybreak.train.ceiling import ceiling
from daybreak.train.compiled import compiled
from daybreak.train.flops import flops

SHAPES = {
    "cpu": ("gpt2", "pythia-160m", "bloom-560m"),
    "cuda": ("gpt2-medium", "gpt2-xl", "pythia-1.4b", "bloom-1b1"),
}
LENGTH = {"cpu": 256, "cuda": 1024}
BATCH = {"cpu": 4, "cuda": 8}
OURS, THEIRS = "daybreak", "transformers"
NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


@dataclass
class Side:
    """One of the two, and what was measured of it."""

    name: str
    model: nn.Module
    loss_of: Callable[[Tensor], Tensor]
    tokens_per_second: list[float] = field(default_factory=list)
    peak: int = 0
    losses: list[float] = field(default_factory=list)

    def turn(self, windows: Iterator[Tensor], steps: int, memory: Memory) -> None:
        """A step that warms up, then timed ones; the optimizer's state is made for the turn and dropped with
        it, so that two large models fit beside each other."""
        device = next(self.model.parameters()).device
        optimizer = AdamW(self.model.parameters(), lr=1e-5, fused=True)
        memory.reset(device)
        for number in range(steps + 1):
            tokens = next(windows)
            wait(device)
            began = time.perf_counter()
            value = self.loss_of(tokens)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            wait(device)
            taken = time.perf_counter() - began
            self.losses.append(value.item())
            if number:
                self.tokens_per_second.append(tokens[:, 1:].numel() / taken)
        self.peak = max(self.peak, memory.peak(device))


class Memory:
    """The most that a turn held: of the device's memory, or of the process's, read every few milliseconds."""

    def __init__(self) -> None:
        self._most, self._on = 0, False

    def reset(self, device: torch.device) -> None:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        self._most, self._on = 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self, device: torch.device) -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        self._on = False
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while self._on:
            self._most = max(self._most, resident())
            time.sleep(0.01)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sides(size: str, options: argparse.Namespace, dtype: torch.dtype) -> tuple[Side, Side]:
    """Both models from the same folder of random weights."""
    import transformers

    found = find_size(size)
    if found is None:
        sys.exit(f"there is no published size {size!r}; `daybreak families` lists them")
    with tempfile.TemporaryDirectory() as folder:
        daybreak.create(found[0].name, size).save(folder)
        config = transformers.AutoConfig.from_pretrained(folder)
        for name in NO_DROPOUT:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
        model = daybreak.load(folder, dtype="float32", device=options.device)
    theirs = theirs.to(options.device).train()
    forward = torch.compile(theirs) if options.compile_theirs else theirs

    def products() -> torch.autocast:
        return torch.autocast(options.device, dtype, enabled=dtype != torch.float32)

    def our_loss(decoder: Any, batch: Any) -> Tensor:
        with products():
            return loss_sum(decoder, batch) / batch.targets.numel()

    objective = Causal()
    windows = random_windows(model.architecture.vocabulary, options)
    step = our_loss
    if options.compile:
        compilation = compiled(our_loss, model.decoder, objective.batch(next(windows)))
        if compilation.problem is not None:
            print(compilation.problem, file=sys.stderr)
        step = compilation.loss_of

    def ours(tokens: Tensor) -> Tensor:
        return step(model.decoder, objective.batch(tokens))

    def plain(tokens: Tensor) -> Tensor:
        with products():
            targets = tokens[:, 1:].contiguous()
            result = forward(input_ids=tokens[:, :-1], labels=targets, shift_labels=targets)
        return result.loss  # type: ignore[no-any-return]

    return Side(OURS, model.decoder, ours), Side(THEIRS, theirs, plain)


def random_windows(vocabulary: int, options: argparse.Namespace) -> Iterator[Tensor]:
    """Stretches of tokens without end, the same for both sides."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.length + 1)
    while True:
        yield torch.randint(vocabulary, shape, generator=generator).to(options.device)


def measure(size: str, options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """All rounds of one shape."""
    gc.collect()
    before = 0 if options.device == "cuda" else resident()
    pair = sides(size, options, dtype)
    architecture = pair[0].model.architecture
    weights = {side.name: sum(one.nbytes for one in side.model.parameters()) for side in pair}
    memory, ceilings = Memory(), []
    streams = [random_windows(architecture.vocabulary, options) for _ in pair]
    for number in range(options.rounds):
        ceilings.append(ceiling(dtype, options.device))
        # ABBA: who goes first alternates, too, for a machine that slows down or speeds up.
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            pair[place].turn(streams[place], options.steps, memory)
    top = statistics.median(ceilings)
    per_token = flops(architecture, options.length).training
    result: dict[str, Any] = {"shape": size, "ceiling": top, "flops_per_token": per_token}
    for side, other in (pair, pair[::-1]):
        speed = statistics.median(side.tokens_per_second)
        result[side.name] = {
            "tokens_per_second": speed,
            "slowest": min(side.tokens_per_second),
            "fastest": max(side.tokens_per_second),
            "utilisation": speed * per_token / top,
            "peak_bytes": side.peak - before - weights[other.name],
        }
    pairs = zip(*(chunks(side.tokens_per_second, options.steps) for side in pair), strict=True)
    ratios = [statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs]
    result["ratio"] = statistics.median(ratios)
    result["ratios"] = ratios
    result["difference_of_first_losses"] = abs(pair[0].losses[0] - pair[1].losses[0])
    return result


def chunks(values: list[float], size: int) -> list[list[float]]:
    """Each round's."""
    return [values[first : first + size] for first in range(0, len(values), size)]


def table(results: list[dict[str, Any]]) -> str:
    """The results for people."""
    head = "shape         side          tokens/s (range)       utilisation  peak GiB  ratio (rounds)"
    lines = [head]
    for result in results:
        for name in (OURS, THEIRS):
            side = result[name]
            rounds = f"{min(result['ratios']):.2f}-{max(result['ratios']):.2f}"
            ratio = f"{result['ratio']:.2f} ({rounds})" if name == OURS else ""
            spread = f"{side['tokens_per_second']:.0f} ({side['slowest']:.0f}-{side['fastest']:.0f})"
            lines.append(
                f"{result['shape']:<13} {name:<13} {spread:<22} {side['utilisation']:>11.0%}  "
                f"{side['peak_bytes'] / 2**30:>8.2f}  {ratio}"
            )
        lines.append(
            f"{'':<13} ceiling {result['ceiling'] / 1e9:.0f} GFLOP/s; the first losses differ by "
            f"{result['difference_of_first_losses']:.1e}"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The options, with the device's defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", help="published sizes, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn")
    parser.add_argument("--batch", type=int, help="sequences of a step")
    parser.add_argument("--length", type=int, help="tokens of a sequence")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, or auto: the faster here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="daybreak's loss as it is")
    parser.add_argument("--compile-theirs", action="store_true", help="torch.compile for transformers, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.shapes = options.shapes.split(",") if options.shapes else list(SHAPES[options.device])
    options.batch = options.batch or BATCH[options.device]
    options.length = options.length or LENGTH[options.device]
    return options


def main() -> None:
    """Measure shape by shape, and print a table or JSON."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = parsed()
    if options.dtype == "auto":
        speeds = {one: ceiling(one, options.device, 0.5) for one in (torch.float32, torch.bfloat16)}
        dtype = max(speeds, key=lambda one: speeds[one])
    else:
        dtype = getattr(torch, options.dtype)
    results = []
    for size in options.shapes:
        print(f"{size}, {dtype} ...", file=sys.stderr)
        results.append(measure(size, options, dtype))
        torch._dynamo.reset()
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": options.device}
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    told = {**vars(options), "dtype": str(dtype).removeprefix("torch."), "machine": machine}
    if options.json:
        print(json.dumps({**told, "results": results}, indent=2))
        return
    print(f"{told['dtype']}, {options.batch} x {options.length} tokens, {machine}")
    print(table(results))


if __name__ == "__main__":
    main()
