"""The end of a build: manifest and report, and everything moved to where training reads it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from daybreak import __version__, settings
from daybreak.data.build.executors import SUBMITTED, spent
from daybreak.data.build.files import FILES, FOLDERS
from daybreak.data.build.plan import Plan, fingerprint
from daybreak.data.build.report import make_report
from daybreak.data.build.steps import loaded
from daybreak.data.build.tally import read_json, write_json
from daybreak.data.token_shards import Manifest, Shard, Source

SPLITS = ("training", "validation")
MANIFEST = "manifest.json"
MOVING = "moving"


class Finish(PipelineStep):  # type: ignore[misc]
    """One task, after all others."""

    type, name = "🏁 - FINISH", "manifest"

    def __init__(self, plan: Plan, building: Path, out: Path, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.plan, self.building, self.out, self.inputs = plan, building, out, dict(inputs)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """May be interrupted anywhere and started again; the manifest comes last, and makes it valid."""
        done = self.building / "done"
        if not (done / MANIFEST).exists():
            if (self.building / MOVING).exists():
                # It was the very last step that was interrupted.
                (self.building / SUBMITTED).unlink(missing_ok=True)
                return
            tokenizer = loaded(self.building / "tokenizer")
            tokenizer.save(done / "tokenizer")
            report = make_report(self.plan, self.building / "reports")
            write_json(done / "report.json", {**report, "stages": spent(self.building)})
            (done / "recipe.yaml").write_text(settings.to_yaml(self.plan.recipe), encoding="utf-8")
            assert tokenizer.eos_id is not None
            versions = {"daybreak": __version__, "datatrove": importlib.metadata.version("datatrove")}
            Manifest(
                vocabulary=tokenizer.vocabulary,
                context=self.plan.recipe.context,
                separator=tokenizer.eos_id,
                sources=tuple(self._sources()),
                recipe_sha256=fingerprint(self.plan.recipe),
                inputs={**self.inputs, "versions": versions},
            ).write(done)
        _move(done, self.out)
        (self.building / SUBMITTED).unlink(missing_ok=True)

    def _sources(self) -> list[Source]:
        found: dict[tuple[int, str], list[Shard]] = {}
        for file in sorted((self.building / "reports" / "shards").glob("*.json")):
            report = read_json(file)
            if report["shard"]:
                piece = report["piece"]
                found.setdefault((piece["source"], piece["split"]), []).append(Shard(**report["shard"]))
        sources = []
        for number, source in enumerate(self.plan.recipe.sources):
            shards = {split: tuple(found.get((number, split), ())) for split in SPLITS}
            tokens = sum(shard.tokens for shard in shards["training"])
            weight = float(tokens) if source.weight is None else source.weight
            sources.append(Source(source.name, weight, shards))
        return sources


def _move(done: Path, out: Path) -> None:
    """What is in `out` gives way, its manifest first, so that nobody reads a mixture of two data sets."""
    marker = done.parent / MOVING
    if not marker.exists():
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (out / name).exists():
                shutil.rmtree(out / name)
        marker.touch()
    for part in sorted(done.iterdir(), key=lambda part: part.name == MANIFEST):
        os.replace(part, out / part.name)
