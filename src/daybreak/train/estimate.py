"""What a run will need, before anything starts: operations, memory, disk, time."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch

from daybreak import parameters
from daybreak.architecture import Architecture
from daybreak.objectives.batch import token_losses
from daybreak.objectives.summed import loss_sum
from daybreak.train.ceiling import ceiling
from daybreak.train.course import Course
from daybreak.train.flops import flops
from daybreak.train.memory import Cut, Kept, Memory, kept, memory
from daybreak.train.precision import faster_dtype
from daybreak.train.settings import ParallelSettings, Settings
from daybreak.train.world import Place, arrangement

SHARE = {"cpu": 0.7, "cuda": 0.4}
"""Which part of the ceiling a training step reaches: measured on a CPU (docs/performance.md); of GPUs what
large runs publish (PaLM, arXiv 2204.02311, table 3: 0.21 to 0.46)."""
WORDS = {
    "optimizer": "optimizer state",
    "average": "moving average",
    "gathered": "gathered layers",
    "casts": "matrices in the products' dtype",
}
"""Parts of the memory that are not called by their field's name."""
MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Estimate:
    """The figures of `--dry-run`. Bytes, FLOPs and seconds."""

    parameters: int
    device: str
    processes: int
    context: int
    """Tokens of a sequence."""
    steps: int
    tokens: int
    """Read by all steps."""
    dtype: str
    """Of the matrix products."""
    flops_per_token: int
    """Forwards and backwards, without what is computed a second time."""
    flops: int
    """Of the whole run, likewise."""
    work: int
    """With what is computed a second time."""
    memory: Memory
    """Of each device."""
    available: int
    """Memory of this machine's device, or of the machine, in so far as processes share it; 0: unknown."""
    checkpoint: int
    """One checkpoint on disk."""
    disk: int
    """All checkpoints that are there at once, and the exported model."""
    copied: int
    """Main memory of each process for the copy that a checkpoint in the background is written from."""
    ceiling: float | None
    """FLOP/s of a large matrix product here; None where the run is for devices that this machine lacks."""
    share: float
    """Which part of the ceiling is expected of training."""

    @property
    def seconds(self) -> float | None:
        """For all steps, on as many devices like this one; evaluation and checkpoints come on top."""
        if self.ceiling is None:
            return None
        return self.work / (self.ceiling * self.share * self.processes)

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        told = dataclasses.asdict(self)
        told["memory"]["total"] = self.memory.total
        return {**told, "seconds": self.seconds}


def estimate(
    settings: Settings, architecture: Architecture, course: Course, measure: bool = True
) -> Estimate:
    """What the run of `settings` needs that trains `architecture` along `course`.

    Takes a few seconds: what is kept between the ways forwards and back is counted on a model without
    memory, and with `measure` a few matrix products tell how fast this machine is.
    """
    replicas, shards, tensor = processes(settings.parallel)
    size, device = replicas * shards * tensor, _device(settings.parallel)
    dtype = _dtype(settings, device)
    micro = min(settings.batch.micro, max(1, settings.batch.sequences // (replicas * shards)))
    # On one CPU the head keeps no logits (objectives/summed.py).
    losses = loss_sum if size == 1 and device == "cpu" else token_losses
    keeps = kept(architecture, micro, course.context, dtype, settings.precision.recompute, losses)
    cut = Cut(shards, tensor, gathers=replicas * shards > 1)
    need = memory(architecture, settings.optimizer, keeps, cut, settings.ema is not None)
    count = parameters.count(architecture)
    tokens = course.before(course.steps) * course.context
    each = flops(architecture, course.context)
    one = _checkpoint(architecture, settings)
    here = device == "cpu" or torch.cuda.is_available()
    return Estimate(
        parameters=count,
        device=device,
        processes=size,
        context=course.context,
        steps=course.steps,
        tokens=tokens,
        dtype=str(dtype).removeprefix("torch."),
        flops_per_token=each.training,
        flops=each.training * tokens,
        work=(each.recomputed if settings.precision.recompute else each.training) * tokens,
        memory=need,
        available=_available(device) if here else 0,
        checkpoint=one,
        disk=one * _checkpoints(settings, course) + 4 * count,
        copied=one // size if settings.checkpoints.background else 0,
        ceiling=ceiling(dtype, device, 0.5) if here and measure else None,
        share=SHARE[device],
    )


def lines(found: Estimate) -> list[str]:
    """The estimate for people."""
    many = "one process" if found.processes == 1 else f"{found.processes:,} processes"
    per = "on each device" if found.device == "cuda" else "of each process"
    told = [
        f"parameters   {found.parameters:,}",
        f"run          {found.steps:,} steps, {_short(found.tokens)} tokens in sequences of "
        f"{found.context:,}, {many} on {found.device}, products in {found.dtype}",
        f"FLOPs        {_short(found.flops_per_token)} per token forwards and backwards, "
        f"{_short(found.flops)} in all",
        f"memory       {_size(found.memory.total)} {per}: {_parts(found.memory)}",
    ]
    if found.copied:
        told.append(
            f"             and {_size(found.copied)} of main memory per process while a checkpoint is written"
        )
    told.append(
        f"disk         {_size(found.checkpoint)} per checkpoint; {_size(found.disk)} in all, with the model"
    )
    told.append(f"time         {_time(found)}")
    local = found.processes if found.device == "cpu" else 1
    if found.available and found.memory.total * local > found.available:
        told.append(
            f"             this does not fit: there are {_size(found.available)}; lower batch.micro or "
            "data.context, set precision.recompute, or cut the model over more processes"
        )
    return told


def processes(settings: ParallelSettings) -> tuple[int, int, int]:
    """Replicas, shards and tensor ranks: of the processes that run, or, started alone, of those that the
    settings speak of."""
    place = Place.of(os.environ)
    if place is not None:
        return arrangement(settings, place.size)
    return arrangement(settings, settings.replicas * (settings.shards or 1) * settings.tensor)


def _device(settings: ParallelSettings) -> str:
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(settings: Settings, device: str) -> torch.dtype:
    if settings.precision.dtype != "auto":
        found: torch.dtype = getattr(torch, settings.precision.dtype)
        return found
    return faster_dtype() if device == "cpu" else torch.bfloat16


def _checkpoint(architecture: Architecture, settings: Settings) -> int:
    """Weights, optimizer state and average, whole."""
    whole = memory(architecture, settings.optimizer, Kept(0, 0, 0), Cut(), settings.ema is not None)
    return whole.weights + whole.optimizer + whole.average


def _checkpoints(settings: Settings, course: Course) -> int:
    """How many are there at once: a new one is complete before an old one goes."""
    asked = settings.checkpoints
    written = -(-course.steps // asked.every)
    for_good = 0 if asked.keep_every is None else course.steps // asked.keep_every
    return min(written, asked.keep + 1 + for_good)


def _available(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _parts(found: Memory) -> str:
    parts = [(name, value) for name, value in dataclasses.asdict(found).items() if value]
    return ", ".join(f"{WORDS.get(name, name)} {_size(value)}" for name, value in parts)


def _time(found: Estimate) -> str:
    if found.ceiling is None or found.seconds is None:
        return f"not estimated: this machine has no {found.device}"
    if found.seconds < 2 * MINUTE:
        told = f"{found.seconds:.0f} s"
    elif found.seconds < 2 * HOUR:
        told = f"{found.seconds / MINUTE:.0f} minutes"
    elif found.seconds < 2 * DAY:
        told = f"{found.seconds / HOUR:.1f} hours"
    else:
        told = f"{found.seconds / DAY:,.1f} days"
    each = "" if found.processes == 1 else f" on {found.processes:,} such machines or devices"
    return (
        f"about {told}{each}, at {found.share:.0%} of this machine's {found.ceiling / 1e9:,.0f} GFLOP/s in "
        "matrix products; evaluation and checkpoints come on top"
    )


def _short(number: float) -> str:
    """Three digits and a unit: 855M, 1.23e+18 from a quadrillion on."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if size <= number < 1000 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _size(number: float) -> str:
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"
