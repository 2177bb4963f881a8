"""Peak memory of loading, each in a process of its own: at most 1.15 times the loaded weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import daybreak

BOUND = 1.15
MEASURE = """
import re, sys
from pathlib import Path
import daybreak.language_model as library
folder, dtype = sys.argv[1:]
def kernel(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = kernel("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = library.load(folder, dtype=dtype)
peak = kernel("VmHWM") - before
print(peak, sum(p.numel() * p.element_size() for p in model.decoder.parameters()))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")


def measured(folder: Path, dtype: str) -> tuple[int, int]:
    """Bytes of peak memory beyond the imports, and of the weights."""
    command = [sys.executable, "-c", MEASURE, str(folder), dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, weights = map(int, result.stdout.split())
    return peak, weights


@pytest.mark.parametrize(("name", "changes"), [("gpt2", {}), ("gpt_neox", {"heads": 8})])
def test_peak_memory(name: str, changes: dict[str, int], tmp_path: Path) -> None:
    shape = {"vocabulary": 50000, "layers": 8, "width": 512, "heads": 8, **changes}
    daybreak.create(name, **shape).save(tmp_path)
    peak, weights = measured(tmp_path, "float32")
    assert weights > 190_000_000
    mapped = name == "gpt2"  # the other's layout has to be taken apart head by head
    assert peak < (0.1 if mapped else 0.5) * weights
    peak, weights = measured(tmp_path, "bfloat16")
    assert weights > 95_000_000
    assert 0.9 * weights < peak < BOUND * weights
