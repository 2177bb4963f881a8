"""A run's folder is there whole or not at all, and replaces nothing but an earlier run."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from daybreak.errors import DaybreakError
from daybreak.quickstart.run_folder import METRICS, RESULT, append_metrics, check_target, new_folder


def fill(target: Path, text: str) -> None:
    with new_folder(target) as folder:
        (folder / "weights").write_text(text)
        (folder / RESULT).write_text("{}")


def test_a_folder_appears_whole_and_replaces_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "one"
    fill(target, "first")
    check_target(target, force=False)
    fill(target, "second")
    assert (target / "weights").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["one"]
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(target.parent.stat().st_mode)


def test_what_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    fill(tmp_path / "run", "first")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (tmp_path / "run" / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DaybreakError, match=r"no earlier run.*--out.*--force"):
        check_target(tmp_path, force=False)
    check_target(tmp_path, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(DaybreakError, match="name another folder"):
        check_target(tmp_path / "file", force)


def test_an_empty_or_absent_folder_is_welcome(tmp_path: Path) -> None:
    check_target(tmp_path, force=False)
    check_target(tmp_path / "absent", force=False)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(DaybreakError, match="cannot be written"), new_folder(tmp_path / "file" / "run"):
        pass


def test_metrics_are_one_object_per_line(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 1, "loss": 2.5})
    append_metrics(tmp_path, {"step": 2, "loss": 2.0})
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
