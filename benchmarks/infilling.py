"""Filling in a deleted line: a model that reads both sides of it beside one that reads the left side only.

    daybreak quickstart --family glm --out runs/glm
    daybreak quickstart --out runs/causal
    python benchmarks/infilling.py --glm runs/glm --causal runs/causal

Both are asked for the same lines of the validation files and may read the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import daybreak
from daybreak.data.standard_library import split, standard_library
from daybreak.quickstart.infilling import READ, RESAMPLED, Attempt, Share, attempts, deleted_lines, summary
from daybreak.quickstart.run_folder import RESULT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--glm", type=Path, required=True, help="run that reads both sides")
    parser.add_argument("--causal", type=Path, required=True, nargs="+", help="runs that read the left side")
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, help="the folder of Python files that both learned from")
    options = parser.parse_args()
    _, files = split(standard_library(options.source))
    first = daybreak.load(options.glm)
    assert first.tokenizer is not None
    lines = deleted_lines(files, first.tokenizer, options.lines, options.seed)
    print(f"{len(lines)} lines of {len(files)} validation files; at most {READ} tokens of the file are read")
    both = attempts(first, lines, infilling=True)
    _print(options.glm, "both sides", both, options.seed)
    for folder in options.causal:
        model = daybreak.load(folder)
        left = attempts(model, lines, infilling=False)
        _print(folder, "left side", left, options.seed)
        difference = _difference(both, left, options.seed)
        print(f"  lines more that are exact with both sides: {_words(difference)}")


def _print(folder: Path, reads: str, tried: list[Attempt], seed: int) -> None:
    result = json.loads((folder / RESULT).read_text())
    found = summary(tried, seed)
    learned = f"{result['steps']} steps, {result['tokens'] / 1e6:.2f} M tokens"
    print(f"{folder} ({result['settings']['family']}, {learned}), {reads}")
    print(f"  exact lines {_words(found.exact)}   tokens {_words(found.tokens)}")


def _difference(one: list[Attempt], other: list[Attempt], seed: int) -> Share:
    """Of the same lines, drawn again together."""
    gained = np.array([float(a.exact) - float(b.exact) for a, b in zip(one, other, strict=True)])
    drawn = np.random.default_rng(seed).integers(len(gained), size=(RESAMPLED, len(gained)))
    low, high = np.quantile(gained[drawn].mean(1), [0.025, 0.975])
    return Share(float(gained.mean()), float(low), float(high))


def _words(share: Share) -> str:
    return f"{share.value:.1%} (95 % interval {share.low:.1%} to {share.high:.1%})"


if __name__ == "__main__":
    main()
