"""How much memory is left: the machine's, a GPU's, or what a control group of processes may have."""

from __future__ import annotations

import re
from pathlib import Path

import torch

GROUPS = Path("/sys/fs/cgroup")
UNKNOWN = 4 << 30
"""Taken to be there where the system does not say."""


def available(device: torch.device) -> int:
    """Bytes that could be had now without harm to others; pages of files count: they can be read again."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo")))
    free = int(found[1]) * 1024 if found else UNKNOWN
    allowed = left_of_group()
    return free if allowed is None else min(free, allowed)


def left_of_group() -> int | None:
    """What the tightest of this process's control groups still allows; None: there is no limit."""
    left = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "memory":
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left.append(_left(GROUPS / "memory", path, *names))
        elif kinds == "":
            for root in (GROUPS, GROUPS / "unified"):
                left.append(_left(root, path, "memory.max", "memory.current", "inactive_file"))
    return min((one for one in left if one is not None), default=None)


def _left(root: Path, path: str, limit: str, usage: str, files: str) -> int | None:
    """Of the group at `path` and those around it."""
    left = []
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        most, used = _text(group / limit).strip(), _text(group / usage).strip()
        if most.isdigit() and used.isdigit() and int(most) < 1 << 60:
            pages = re.search(rf"^{files} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            left.append(max(0, int(most) - int(used) + (int(pages[1]) if pages else 0)))
    return min(left, default=None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
