"""Data sets of the hub: the commit that a build reads is fixed when it is planned, so a change is noticed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader

from daybreak import settings
from daybreak.data.build import readers
from daybreak.data.build.plan import make_plan
from daybreak.data.build.run import differences
from daybreak.data.build.tally import Tally
from daybreak.data.recipe import Recipe
from daybreak.errors import DaybreakError

OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """Stands for the hub's client, as daybreak asks it."""

    commits: dict[str | None, str] = {}  # noqa: RUF012

    def dataset_info(self, repository: str, revision: str | None = None) -> Any:
        if revision not in self.commits:
            raise ConnectionError("nobody\nanswers")
        return SimpleNamespace(sha=self.commits[revision])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "commits", {})
    return Hub


def recipe(revision: str | None) -> Recipe:
    source = {"name": "web", "dataset": "owner/name", "revision": revision}
    return settings.build(Recipe, {"tokenizer": "nowhere", "sources": [source]})


def state(made: Recipe, base: Path) -> dict[str, Any]:
    files = make_plan(made, base).checksums()
    return {"recipe": settings.to_tree(made), "inputs": {"files": files, "tokenizer": ""}}


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_data_set_that_changed_is_noticed(tmp_path: Path, hub: type[Hub], revision: str | None) -> None:
    hub.commits[revision] = OLD
    before = state(recipe(revision), tmp_path)
    assert differences(before, state(recipe(revision), tmp_path)) == []
    hub.commits[revision] = NEW
    found = differences(before, state(recipe(revision), tmp_path))
    assert found == ["the file hub:owner/name/train has changed"]


def test_what_was_planned_is_read(tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commits[None] = OLD
    made = recipe(None)
    (task,) = make_plan(made, tmp_path).tasks
    hub.commits[None] = NEW
    seen = []
    monkeypatch.setattr(HuggingFaceDatasetReader, "_requires_dependencies", [])  # its library may be missing
    monkeypatch.setattr(readers._Hub, "run", lambda self, **_: seen.append(self.dataset_options) or iter(()))
    assert list(readers.documents(task, made.sources[0], Tally("web"), 0)) == []
    assert [options["revision"] for options in seen] == [OLD]


def test_a_commit_needs_no_question_and_all_else_an_answer(tmp_path: Path, hub: type[Hub]) -> None:
    (item,) = make_plan(recipe(NEW), tmp_path).inputs
    assert item.commit == NEW
    message = r"owner/name at revision main: .*nobody answers.*give a commit as revision"
    with pytest.raises(DaybreakError, match=message):
        make_plan(recipe(None), tmp_path)
