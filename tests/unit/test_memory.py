"""How much memory is left, as control groups of both kinds say it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from daybreak.engine import memory

MIB = 1 << 20


def groups(folder: Path, files: dict[str, str], lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    read = memory._text

    def _text(file: Path) -> str:
        return lines if str(file) == "/proc/self/cgroup" else read(file)

    monkeypatch.setattr(memory, "GROUPS", folder)
    monkeypatch.setattr(memory, "_text", _text)


def test_the_tightest_group_around_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "memory.max": "max\n",
        "a/memory.max": f"{100 * MIB}\n",
        "a/memory.current": f"{70 * MIB}\n",
        "a/memory.stat": f"anon 5\ninactive_file {20 * MIB}\n",
        "a/b/memory.max": f"{80 * MIB}\n",
        "a/b/memory.current": f"{10 * MIB}\n",
    }
    groups(tmp_path, files, "0::/a/b\n", monkeypatch)
    assert memory.left_of_group() == 50 * MIB
    assert memory.available(torch.device("cpu")) == 50 * MIB


def test_groups_of_the_first_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "1\n",
        "memory/a/memory.limit_in_bytes": f"{30 * MIB}\n",
        "memory/a/memory.usage_in_bytes": f"{31 * MIB}\n",
    }
    groups(tmp_path, files, "5:cpu,cpuacct:/x\n4:memory:/a\n", monkeypatch)
    assert memory.left_of_group() == 0


def test_without_limits_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups(tmp_path, {}, "0::/a/b\n", monkeypatch)
    assert memory.left_of_group() is None
    assert memory.available(torch.device("cpu")) > 1 << 20
