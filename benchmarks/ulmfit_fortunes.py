"""ULMFiT on the fortunes of Debian: which category is a text from?

    python benchmarks/ulmfit_fortunes.py [--fortunes FOLDER] [--general FILE ...] [--share 0.25] [--both]

The texts are read from the packages fortunes and fortunes-min, and nothing of them is kept. A language model
learns general text, goes on with the fortunes that are not held out, and becomes a classifier; beside it
stands the same network with fresh weights, the same vocabulary and as many epochs. The last lines are the
table of docs/ulmfit.md.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import hashlib
import resource
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak import settings as reading
from daybreak.transfer.run import learn_classes, learn_language
from daybreak.transfer.settings import ClassifySettings, LanguageSettings
from daybreak.transfer.use import evaluate

FORTUNES = Path("/usr/share/games/fortunes")
GENERAL = (Path("/usr/share/dictd/jargon.dict.dz"), Path("/usr/share/dictd/devil.dict.dz"))
LEAST, LONG = 300, 80
"""A category takes part with at least so many texts of at least so many characters."""
SHAPE = {"width": 64, "hidden": 128, "layers": 3}
COMMON: dict[str, Any] = {"batch": 32, "window": 50, "log": {"every": 100, "tensorboard": False}}
LANGUAGE: dict[str, Any] = {**COMMON, "words": 8000}
CLASSES: dict[str, Any] = {**COMMON, "epochs": 7}


class Quiet:
    """A screen on which nothing is shown but the run's own notes."""

    speaks = False

    def phase(self, name: str) -> None: ...

    def point(self, point: Any) -> None: ...

    def say(self, line: str) -> None: ...

    def quiet(self) -> None: ...


@dataclass(frozen=True)
class Fortune:
    """One text."""

    text: str
    category: str

    @property
    def key(self) -> str:
        """The same for texts that differ in case, blanks and lines alone."""
        return " ".join(self.text.lower().split())

    @property
    def draw(self) -> str:
        """The order in which texts are split: by a digest, so that it depends on the text alone."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def read(folder: Path) -> list[Fortune]:
    """Every text once. One that stands in two categories has no class, and is left out."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.suffix)
    if not files:
        raise SystemExit(f"{folder} has no fortunes; on Debian: apt install fortunes fortunes-min")
    found: dict[str, Fortune] = {}
    places: dict[str, set[str]] = {}
    for file in files:
        for part in file.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            one = Fortune(part.strip(), file.name)
            if one.text:
                found.setdefault(one.key, one)
                places.setdefault(one.key, set()).add(file.name)
    return [one for key, one in found.items() if len(places[key]) == 1]


def split(texts: Sequence[Fortune]) -> dict[str, list[Fortune]]:
    """`training`, `validation`, `test` (40, 20 and 40 % of every category) of those that take part, and
    `other`."""
    counts = Counter(one.category for one in texts if len(one.text) >= LONG)
    chosen = {category for category, count in counts.items() if count >= LEAST}
    parts: dict[str, list[Fortune]] = {"training": [], "validation": [], "test": [], "other": []}
    for category in sorted(counts):
        own = [one for one in texts if one.category == category]
        taking = [one for one in own if category in chosen and len(one.text) >= LONG]
        parts["other"] += [one for one in own if one not in taking]
        taking.sort(key=lambda one: one.draw)
        first, second = round(0.4 * len(taking)), round(0.6 * len(taking))
        parts["training"] += taking[:first]
        parts["validation"] += taking[first:second]
        parts["test"] += taking[second:]
    return parts


def fewer(texts: Sequence[Fortune], share: float) -> list[Fortune]:
    """The first `share` of every category; the others are known without their classes."""
    found = []
    for category in sorted({one.category for one in texts}):
        own = [one for one in texts if one.category == category]
        found += own[: round(share * len(own))]
    return found


def write(file: Path, texts: Sequence[Fortune]) -> str:
    with file.open("w", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["text", "label"])
        rows.writerows((one.text, one.category) for one in texts)
    return str(file)


def general(files: Sequence[Path], folder: Path) -> list[str]:
    """Text files, and dictionaries as dictd has them, unpacked; each paragraph by paragraph in a table."""
    written = []
    for number, file in enumerate(files):
        packed = file.suffix in (".dz", ".gz")
        content = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
        blocks = [block.strip() for block in content.decode(errors="replace").split("\n\n")]
        texts = [Fortune(block, "") for block in blocks if len(block) >= LONG]
        written.append(write(folder / f"general-{number}.csv", texts))
    return written


class Experiment:
    """One direction of reading: its language models, and classifiers of every seed."""

    def __init__(self, folder: Path, files: Mapping[str, str], texts: Sequence[str], backward: bool) -> None:
        self.folder, self.files, self.general = folder, files, texts
        self.direction = "backward" if backward else "forward"

    def language(self) -> None:
        """General text, then the fortunes that are not held out."""
        own = {"changes": SHAPE, "direction": self.direction, "factor": 1.0, "epochs": 1}
        first = self._learn("general", self.general, {**own, "lr": 8e-3, "dropout": 0.3})
        print(f"{self.direction}, general text: {first}", flush=True)
        start = str(self.folder / f"{self.direction}-general" / "model")
        named = [self.files["training"], self.files["other"]]
        second = self._learn("tuned", named, {"start": start, "epochs": 3, "lr": 8e-3, "dropout": 0.4})
        print(f"{self.direction}, fortunes: {second}", flush=True)

    def _learn(self, name: str, files: Sequence[str], own: Mapping[str, Any]) -> str:
        data = {"files": list(files), "held_out": [self.files["validation"]]}
        settings = reading.build(LanguageSettings, {**LANGUAGE, **own, "data": data})
        done = learn_language(settings, self.folder / f"{self.direction}-{name}", Quiet())
        return f"{done.steps:,} steps, perplexity of held-out fortunes {done.scores['perplexity']:.1f}"

    def classifier(self, seed: int, own: Mapping[str, Any], name: str) -> tuple[str, float, float]:
        """The folder, and the accuracy on validation and test texts."""
        labelled = self.files.get("labelled", self.files["training"])
        data = {"files": [labelled], "held_out": [self.files["validation"]]}
        start = str(self.folder / f"{self.direction}-tuned" / "model")
        tree = {**CLASSES, **own, "seed": seed, "start": start, "data": data}
        out = self.folder / f"{self.direction}-{Path(labelled).stem}-{name}-{seed}"
        done = learn_classes(reading.build(ClassifySettings, tree), out, Quiet())
        test = evaluate([str(out / "model")], [self.files["test"]])
        return str(out / "model"), done.scores["accuracy"], test["accuracy"]


FRESH: dict[str, Any] = {"pretrained": False, "gradual": False, "factor": 1.0}
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "fresh": ({**FRESH, "dropout": 0.5, "lr": 0.01}, {**FRESH, "dropout": 0.25, "lr": 0.005}),
    "ulmfit": ({"dropout": 0.5, "lr": 0.01}, {"dropout": 0.25, "lr": 0.01}),
}
"""Two settings for either side; what is better on validation texts with the first seed is compared."""


def best_of(experiment: Experiment, name: str, seeds: Sequence[int]) -> list[tuple[str, float, float]]:
    """Of every seed, with the better setting."""
    trials = [experiment.classifier(seeds[0], own, f"{name}{n}") for n, own in enumerate(TRIALS[name])]
    best = max(range(len(trials)), key=lambda number: trials[number][1])
    told = ", ".join(f"{one[1]:.1%}" for one in trials)
    print(f"{experiment.direction}, {name}, on validation texts: {told}, so {TRIALS[name][best]}", flush=True)
    own = TRIALS[name][best]
    return [trials[best], *(experiment.classifier(seed, own, f"{name}{best}") for seed in seeds[1:])]


def main() -> None:
    given = arguments()
    with contextlib.ExitStack() as stack:
        folder = given.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        parts = split(read(given.fortunes))
        if given.share < 1:
            parts["labelled"] = fewer(parts["training"], given.share)
        files = {part: write(folder / f"{part}.csv", texts) for part, texts in parts.items()}
        counts = Counter(one.category for one in parts["test"])
        most = Counter(one.category for one in parts["training"]).most_common(1)[0][0]
        sizes = ", ".join(f"{part} {len(texts):,}" for part, texts in parts.items())
        print(f"{len(counts)} categories: {', '.join(sorted(counts))}; texts: {sizes}", flush=True)
        texts = general(given.general, folder)
        rows = [["majority", *[f"{counts[most] / len(parts['test']):.1%}"] * (given.seeds + 1)]]
        rows += compared(folder, files, texts, given)
        table(rows, given.seeds)
        print(f"CPU time: {cpu() / 60:.1f} min")


def compared(
    folder: Path, files: Mapping[str, str], texts: Sequence[str], given: argparse.Namespace
) -> list[list[str]]:
    seeds = range(given.seeds)
    forward = Experiment(folder, files, texts, backward=False)
    forward.language()
    fresh, found = best_of(forward, "fresh", seeds), best_of(forward, "ulmfit", seeds)
    rows = [line("fresh weights", fresh), line("ULMFiT", found)]
    if given.both:
        backward = Experiment(folder, files, texts, backward=True)
        backward.language()
        other = best_of(backward, "ulmfit", seeds)
        pairs = [[one[0], two[0]] for one, two in zip(found, other, strict=True)]
        both = [("", 0.0, evaluate(pair, [files["test"]])["accuracy"]) for pair in pairs]
        rows += [line("ULMFiT, backward", other), line("ULMFiT, both directions", both)]
    return rows


def line(name: str, found: Sequence[tuple[str, float, float]]) -> list[str]:
    tests = [one[2] for one in found]
    print(f"{name}: {tests}", flush=True)
    return [name, f"{sum(tests) / len(tests):.1%}", *(f"{one:.1%}" for one in tests)]


def table(rows: Sequence[Sequence[str]], seeds: int) -> None:
    print("| | mean | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " |")
    print("| --- " * (seeds + 2) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fortunes", type=Path, default=FORTUNES)
    parser.add_argument("--general", type=Path, nargs="+", default=GENERAL)
    parser.add_argument("--share", type=float, default=1.0, help="of the training texts that have a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--both", action="store_true", help="a backward model, too, and both together")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those that are there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
