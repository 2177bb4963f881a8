"""The text that is on every machine: which files, split how, compressed how far."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from daybreak.data.compression import xz
from daybreak.data.standard_library import LEFT_OUT, SourceFile, split, standard_library
from daybreak.errors import DaybreakError


@pytest.fixture(scope="module")
def library() -> list[SourceFile]:
    return standard_library()


def test_the_library_is_there_and_holds_no_tests(library: list[SourceFile]) -> None:
    names = [file.name for file in library]
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert not [name for name in names if LEFT_OUT & set(name.split("/")[:-1])]
    assert names == sorted(names, key=lambda name: Path(name).parts)
    assert sum(len(file.content) for file in library) > 5_000_000


def test_no_content_stands_there_twice(library: list[SourceFile]) -> None:
    assert len({file.content for file in library}) == len(library)


def test_the_split_is_by_file_and_keeps_every_file(library: list[SourceFile]) -> None:
    training, validation = split(library)
    assert sorted(training + validation, key=lambda file: file.name) == sorted(
        library, key=lambda file: file.name
    )
    share = sum(len(file.content) for file in validation) / sum(len(file.content) for file in library)
    assert 0.04 < share <= 0.06


def test_the_split_does_not_depend_on_order_or_content() -> None:
    files = [SourceFile(f"module{number}.py", b"x" * 100) for number in range(100)]
    other = [SourceFile(file.name, b"y" * 100) for file in reversed(files)]
    drawn = {file.name for file in split(files)[1]}
    assert len(drawn) == 6
    assert {file.name for file in split(other)[1]} == drawn


def test_even_one_large_file_leaves_something_to_validate() -> None:
    files = [SourceFile("a.py", b"a" * 1000), SourceFile("b.py", b"b" * 1000)]
    assert [len(part) for part in split(files)] == [1, 1]


def test_left_out_folders_and_duplicates(tmp_path: Path) -> None:
    for name in ("a.py", "test/b.py", "pkg/tests/c.py", "pkg/d.py", "site-packages/e.py", "pkg/test.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "again.py").write_text("# a.py\n")
    (tmp_path / "empty.py").write_text("")
    assert [file.name for file in standard_library(tmp_path)] == ["a.py", "pkg/d.py", "pkg/test.py"]


def test_a_missing_library_is_said(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match="holds no Python source"):
        standard_library(tmp_path / "python312.zip")


def test_a_byte_that_is_no_text_is_no_obstacle() -> None:
    assert SourceFile("a.py", b"# caf\xe9\n").text == "# caf\ufffd\n"


def test_xz_is_what_the_command_gives(library: list[SourceFile]) -> None:
    text = b"".join(file.content for file in library)[:300_000]
    training, validation = text[:200_000], text[200_000:]
    size = len(lzma.compress(validation, preset=9 | lzma.PRESET_EXTREME))
    found = xz(training, validation)
    assert found.alone == pytest.approx(8 * size / len(validation), rel=1e-3)
    assert found.after_training < found.alone


def test_xz_reaches_back_over_the_training_text(library: list[SourceFile]) -> None:
    validation = library[0].content + library[1].content
    training = validation + b"".join(file.content for file in library[2:60])
    assert xz(training, validation).after_training < 0.05
