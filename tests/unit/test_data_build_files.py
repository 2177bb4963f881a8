"""Which files a recipe's paths mean: globs, folders and links, beside what the build itself writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak import settings
from daybreak.data.build.files import BUILDING, FILES, FOLDERS, Found
from daybreak.data.build.plan import Plan, make_plan
from daybreak.data.recipe import Recipe, SourceSettings
from daybreak.errors import DaybreakError


def plan(base: Path, *paths: str, out: Path | None = None) -> Plan:
    tree = {"tokenizer": "nowhere", "sources": [{"name": "a", "paths": list(paths)}]}
    return make_plan(settings.build(Recipe, tree), base, out=out)


def names(made: Plan) -> list[str]:
    return [item.name for item in made.inputs]


def write(base: Path, *files: str) -> None:
    for name in files:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)


@pytest.mark.parametrize("pattern", ["c", "c/*", "c/**", "c/**/*.txt", "[c]"])
def test_what_a_pattern_matches_is_read_to_the_bottom(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "c/a.txt", "c/sub/b.txt", "c/sub/deep/c.txt")
    made = plan(tmp_path, pattern)
    assert names(made) == ["c/a.txt", "c/sub/b.txt", "c/sub/deep/c.txt"]
    assert made.twice == ()


@given(st.lists(st.lists(st.sampled_from("xyz"), min_size=1, max_size=4), min_size=1, max_size=8))
def test_globs_and_folders_mean_the_same(
    tmp_path_factory: pytest.TempPathFactory, places: list[list[str]]
) -> None:
    base = tmp_path_factory.mktemp("base[1]")  # a folder's name is no pattern
    write(base, *(f"c/{'/'.join(place)}/{place[0]}.txt" for place in places))
    expected = sorted({Path("c", *place, f"{place[0]}.txt") for place in places})
    for pattern in ("c", "c/*", "c/**"):
        assert [Path(name) for name in names(plan(base, pattern))] == expected


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, "c/z/a.txt", "elsewhere/b.txt")
    (tmp_path / "c/elsewhere").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "c")
    for name in ("also_z", "zz"):
        (tmp_path / f"c/{name}").symlink_to(tmp_path / "c/z")
    for pattern in ("c", "c/*"):
        made = plan(tmp_path, pattern)
        assert names(made) == ["c/elsewhere/b.txt", "c/z/a.txt"]  # each under its own name where it has one
        assert {("a", "c/also_z/"), ("a", "c/zz/")} <= {*made.twice}


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "c/a.txt", "c/sub/b.txt")
    scan = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        for pattern in ("c", "c/*", "c/**/*.txt", "c/*/*.txt"):
            with pytest.raises(DaybreakError, match=r"the folder .*/c/sub cannot be read: Permission denied"):
                plan(tmp_path, pattern)
    (tmp_path / "c/gone.txt").symlink_to(tmp_path / "absent")
    with pytest.raises(DaybreakError, match=r"c/gone.txt cannot be read: No such file"):
        plan(tmp_path, "c")


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path) -> None:
    write(tmp_path, "c/a.txt")
    os.mkfifo(tmp_path / "c/pipe.txt")
    source = settings.build(SourceSettings, {"name": "a", "paths": ["c"]})
    found = Found(tmp_path)
    assert [name for _, name, _ in found.files(source)] == ["c/a.txt"]
    assert found.other_kinds == [("a", "c/pipe.txt")]


@pytest.mark.parametrize("pattern", [".", "*", "**", "**/*.txt"])
def test_a_build_does_not_read_what_it_writes(tmp_path: Path, pattern: str) -> None:
    written = [f"small/{BUILDING}/kept/00000.txt", *(f"small/{name}" for name in FILES)]
    write(tmp_path, "a.txt", "small/mine.txt", *written, *(f"small/{name}/x.txt" for name in FOLDERS))
    made = plan(tmp_path, pattern, out=tmp_path / "small")
    assert names(made) == ["a.txt", "small/mine.txt"]
    assert made.other_kinds == made.twice == ()
    assert "small/training/x.txt" in names(plan(tmp_path, pattern, out=tmp_path / "other"))
