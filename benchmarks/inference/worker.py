"""The process of one engine: a line of JSON is asked, a line of JSON is answered.

`python -m benchmarks.inference.worker ENGINE FORMAT THREADS`, then {"load": path} or {"prompts": [[...]],
"new": 8}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.inference.engines import Engine, engine


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not print into the answers
    name, format, threads = sys.argv[1:]
    found: Engine | None = None
    for line in sys.stdin:
        try:
            found = found or engine(name, format, int(threads))
            answer = _answer(found, json.loads(line))
        except (Exception, SystemExit) as error:
            answer = {"problem": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=channel, flush=True)


def _answer(found: Engine, request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    if "load" in request:
        found.load(request["load"])
        return {"seconds": time.perf_counter() - start, "memory": peak_memory()}
    tokens = found.generate(request["prompts"], request["new"])
    seconds = time.perf_counter() - start
    if any(len(text) != request["new"] for text in tokens):
        raise ValueError(f"{request['new']} tokens were asked for, {[len(text) for text in tokens]} came")
    return {"seconds": seconds, "tokens": tokens, "memory": peak_memory()}


def peak_memory() -> int:
    """Bytes of this process that were in memory at most, mapped files and libraries included."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    # Not ru_maxrss: on Linux it begins with what the process held that started this one.
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
