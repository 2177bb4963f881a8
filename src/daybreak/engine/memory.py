"""How much memory is left for the engine."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def available(device: torch.device) -> int:
    """Bytes that could be had now without harm to others."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 4 << 30
