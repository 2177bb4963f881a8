"""The machine that a run is on, in words for its logbook."""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter
from pathlib import Path

from daybreak import __version__


def machine() -> dict[str, str]:
    """What is worth noting about it: host, processor, memory, GPUs, software."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {
        "host": f"{socket.gethostname()} ({platform.system()} {platform.release()})",
        "processor": f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
    }
    if torch.cuda.is_available():
        found["GPUs"] = _gpus()
    versions = f"daybreak {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    return {**found, "software": versions}


def _gpus() -> str:
    """3 × NVIDIA H100 80GB HBM3 (79.1 GiB), CUDA 12.8."""
    import torch

    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    kinds = Counter(f"{device.name} ({device.total_memory / 2**30:.1f} GiB)" for device in devices)
    named = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    return f"{named}, CUDA {torch.version.cuda or torch.version.hip}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
