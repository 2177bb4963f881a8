"""How fast the loader reads: sequences a second for random ones of a large data set, and memory.

    python benchmarks/loader.py [--tokens 500_000_000] [--sources 8] [--batch 32] [--seconds 5]

Random tokens in documents of about 600 are written to a temporary folder once. The files are in the page
cache then, so that this measures the work and not the disk. "resident" is what the process holds beside what
it had before it read, mapped pages and all; "own" leaves out the mapped pages, which the kernel takes back at
need.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from daybreak.data.loader import Loader
from daybreak.data.token_shards import Document, Manifest, ShardWriter, Source, TokenSet

SHARD = 50_000_000
VOCABULARY = 50_257


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        began = time.perf_counter()
        data = build(Path(folder), arguments.tokens, arguments.sources)
        print(f"written: {arguments.tokens / 1e6 / (time.perf_counter() - began):.1f} million tokens/s")
        head = ("sequences/s", "tokens/s", "ahead/s", "resident", "own")
        print(f"{'length':>6} {'masking':>7} " + " ".join(f"{word:>11}" for word in head))
        for length, masking in itertools.product((1024, 2048), (False, True)):
            report(data, length, masking, arguments.batch, arguments.seconds)


def build(folder: Path, tokens: int, sources: int) -> TokenSet:
    """A data set of so many tokens in all."""
    random = np.random.default_rng(0)
    found = []
    for source in range(sources):
        left, shards = tokens // sources, []
        while left > 0:
            name = f"training/source{source}/{len(shards):05d}"
            with ShardWriter(folder, name, VOCABULARY) as writer:
                size = min(left, SHARD)
                left -= size
                ids = random.integers(1, VOCABULARY, size)
                ends = np.unique(random.integers(1, size, size // 600))
                for number, ids_ in enumerate(np.split(ids, ends)):
                    writer.add(ids_, Document("a.jsonl", number + 1, f"{number}", None, 4 * len(ids_)))
            shards.append(writer.close())
        found.append(Source(f"source{source}", 1.0 + source, {"training": tuple(shards)}))
    Manifest(VOCABULARY, 1024, 0, tuple(found), "", {}).write(folder)
    return TokenSet.open(folder)


def report(data: TokenSet, length: int, masking: bool, batch: int, seconds: float) -> None:
    """Read for so many seconds, alone and with a thread ahead."""
    process = psutil.Process()
    before = process.memory_info()
    loader = Loader(data, length, seed=0, masking=masking)
    requests = (range(first, first + batch) for first in itertools.count(10**9, batch))
    rate = _rate(map(loader.windows, requests), batch, seconds)
    ahead = loader.ahead(requests)
    ahead_rate = _rate(ahead, batch, seconds)
    ahead.close()  # type: ignore[attr-defined]
    after = process.memory_info()
    resident = (after.rss - before.rss) / 2**20
    own = (after.rss - after.shared - before.rss + before.shared) / 2**20
    figures = (
        f"{rate:,.0f}",
        f"{rate * length / 1e6:.1f}M",
        f"{ahead_rate:,.0f}",
        f"{resident:.0f} MiB",
        f"{own:.0f} MiB",
    )
    print(f"{length:6} {masking!s:>7} " + " ".join(f"{figure:>11}" for figure in figures))


def _rate(stream: object, batch: int, seconds: float) -> float:
    count, began = 0, time.perf_counter()
    for _ in stream:  # type: ignore[attr-defined]
        count += batch
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=500_000_000)
    parser.add_argument("--sources", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the data set is written")
    return parser.parse_args()


if __name__ == "__main__":
    main()
