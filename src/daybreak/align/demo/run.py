"""The demo from start to end, over several seeds, with its table and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak import settings as reading
from daybreak.align.demo.picture import curves
from daybreak.align.demo.report import answers_text, table
from daybreak.align.demo.settings import DemoSettings
from daybreak.align.demo.stages import MODELS, RESULT, Stages, Stopped
from daybreak.align.demo.texts import Texts
from daybreak.errors import DaybreakError
from daybreak.train import run_folder
from daybreak.train.records import Screen

TABLE, PICTURE, ANSWERS = "table.md", "curves.png", "answers.md"


@dataclass(frozen=True)
class Demo:
    """What came of it."""

    folder: Path
    finished: bool
    """False: it was stopped, and the same command goes on."""
    results: Sequence[dict[str, Any]]
    """Of the seeds that are done."""


def demo(settings: DemoSettings, folder: Path, screen: Screen) -> Demo:
    """Everything in the folder `folder`; where a demo stands there, go on with it. Raises `DaybreakError` for
    a folder that holds something else, or a demo with other settings."""
    with run_folder.locked(folder):
        before = run_folder.stored_as(DemoSettings, folder)
        changes = {} if before is None else reading.changed(before, settings)
        changes.pop("seeds", None)
        if changes:
            name, (old, new) = next(iter(changes.items()))
            raise DaybreakError(
                f"{folder} holds a demo with {name} {old!r}, not {new!r}; give another folder with --out"
            )
        run_folder.write(folder, reading.to_yaml(settings))
        texts, results = Texts.read(settings.source), list[dict[str, Any]]()
        for seed in range(settings.seed, settings.seed + settings.seeds):
            try:
                results.append(Stages(settings, seed, folder / f"seed-{seed}", texts, screen).run())
            except Stopped:
                return Demo(folder, False, results)
            tell(folder, settings, results)
    return Demo(folder, True, results)


def tell(folder: Path, settings: DemoSettings, results: Sequence[dict[str, Any]]) -> None:
    """Table, picture and answers of the seeds that are done."""
    (folder / TABLE).write_text(table(results) + "\n", encoding="utf-8")
    (folder / ANSWERS).write_text(answers_text(results[0]), encoding="utf-8")
    (folder / RESULT).write_text(json.dumps(list(results), indent=2) + "\n", encoding="utf-8")
    seeds = range(settings.seed, settings.seed + len(results))
    runs = {
        name: [folder / f"seed-{seed}" / name for seed in seeds] for name in MODELS if name.startswith("ppo")
    }
    curves(runs, folder / PICTURE)
