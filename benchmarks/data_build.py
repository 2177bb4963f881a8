"""Throughput and memory of `daybreak data build` on real text of this machine, with its cost by step.

    python benchmarks/data_build.py [--megabytes 1000] [--workers 2] [--roots DIR ...] [--filters NAME ...]

Text files below the roots (documentation, sources) become rows of .jsonl files. They are taken again until
there is enough text, each time with a third of the words exchanged for others of the same file, so that the
copies are no near duplicates of each other. Throughput is text per second of processor time ("per core"),
which other work on the machine changes little, and per second of the clock. Memory is the largest process's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOTS = ("/usr/share/doc", "/usr/lib/python3", "/usr/lib/python3.11", sys.prefix)
ENDINGS = (".txt", ".md", ".rst", ".html", ".py", ".txt.gz", "copyright")
WORD = re.compile(r"\w+")
CUTS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's: where its tokenizer cuts before it merges."""
FILES = 16


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        written = write_corpus(folder / "corpus", arguments.roots, arguments.megabytes * 10**6)
        tokenizer = _tokenizer(folder, arguments.vocabulary)
        recipe = folder / "recipe.yaml"
        filters = {"length": {"min_words": 20}, **{name: {} for name in arguments.filters}}
        recipe.write_text(
            json.dumps(
                {
                    "tokenizer": str(tokenizer),
                    "sources": [{"name": "text", "paths": ["corpus"]}],
                    "filters": filters,
                    "deduplication": {"exact": True, "minhash": None if arguments.exact else {}},
                }
            )
        )
        command = [sys.executable, "-m", "daybreak.cli.main", "data", "build", str(recipe), "--json"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--workers", str(arguments.workers)], check=True, capture_output=True, text=True
        )
        _report(json.loads(done.stdout)["report"], written, time.perf_counter() - began, arguments)


def write_corpus(folder: Path, roots: list[str], wanted: int) -> int:
    """Bytes of text written."""
    folder.mkdir()
    written = 0
    outs = [(folder / f"{number:02d}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    for number, text in enumerate(_texts(roots)):
        outs[number % FILES].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        written += len(text.encode())
        if written >= wanted:
            break
    for out in outs:
        out.close()
    return written


def _texts(roots: list[str]) -> Iterator[str]:
    files = sorted(
        path
        for root in roots
        for at, _, names in os.walk(root)
        for name in names
        if name.endswith(ENDINGS) and (path := Path(at, name)).is_file()
    )
    random.Random(0).shuffle(files)
    for turn in range(1000):
        draw = random.Random(turn)
        for file in files:
            try:
                raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
                text = raw.decode()
            except (OSError, UnicodeDecodeError):
                continue
            yield text if turn == 0 else _varied(text, draw)


def _varied(text: str, draw: random.Random) -> str:
    words = WORD.findall(text)
    return WORD.sub(lambda word: draw.choice(words) if draw.random() < 0.35 else word[0], text)


def _tokenizer(folder: Path, vocabulary: int) -> Path:
    from daybreak.text.train_tokenizer import train_tokenizer

    with (folder / "corpus" / "00.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(2000), file, strict=False)]
    train_tokenizer(texts, vocabulary, CUTS).save(folder / "tokenizer")
    return folder / "tokenizer"


def _report(report: dict, written: int, elapsed: float, arguments: argparse.Namespace) -> None:
    megabytes = written / 1e6
    stages = report["stages"]
    total = sum(stage["seconds"] for stage in stages.values())
    print(f"{megabytes:,.0f} MB of text, {report['documents']}")
    together = f"{megabytes / elapsed:.2f} MB/s with {arguments.workers} workers"
    print(f"{megabytes / total:.2f} MB/s per core; {together}")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    memory = max(memory, *(stage["memory"] for stage in stages.values()))
    print(f"peak of the largest process: {memory / 2**20:,.0f} MiB")
    for title, seconds in (
        ("by stage", {name: stage["seconds"] for name, stage in stages.items()}),
        ("by step", report["seconds"]),
    ):
        print(f"\n{title}, seconds of processor time and share of all")
        for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
            print(f"  {name:28} {value:9.1f} {value / total:6.1%}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--roots", nargs="+", default=list(ROOTS))
    parser.add_argument("--filters", nargs="*", default=[])
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--exact", action="store_true", help="without MinHash")
    parser.add_argument("--folder", help="where the scratch folder is made")
    return parser.parse_args()


if __name__ == "__main__":
    main()
