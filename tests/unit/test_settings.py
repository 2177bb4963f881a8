"""Settings: what is read, what is refused, and that what is written is read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daybreak.errors import DaybreakError
from daybreak.settings import build, build_given, changed, from_words, merged, read_yaml, to_tree, to_yaml


@dataclass(frozen=True)
class Part:
    rate: float = 0.1
    """How fast."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Two numbers."""


@dataclass(frozen=True)
class Source:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Whole:
    path: Path
    """Where."""
    part: Part = Part()
    """A part."""
    maybe: Part | None = None
    sources: tuple[Source, ...] = ()
    steps: int | None = None
    """How long."""
    names: tuple[str, ...] = ()
    free: dict[str, Any] = field(default_factory=dict)
    on: bool = False


ALL = {"k": [1, 2]}
BOTH = (Source("a"), Source("b", 2.0))
WHOLE = Whole(Path("x"), Part(0.5, (0.1, 0.2)), Part(), BOTH, 3, ("n",), ALL, True)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for comments in (True, False):
        file.write_text(to_yaml(WHOLE, comments))
        assert build(Whole, read_yaml(file)) == WHOLE
    assert build(Whole, to_tree(WHOLE)) == WHOLE


def test_words_of_the_command_line() -> None:
    words = ["--path", "y", "--part.rate=6e-4", "--part.betas", "[0.8, 0.9]", "--steps", "5"]
    found = build(Whole, merged(to_tree(WHOLE), from_words(words)))
    assert (found.path, found.part, found.steps) == (Path("y"), Part(6e-4, (0.8, 0.9)), 5)
    assert found.sources == WHOLE.sources


def test_a_list_of_one_text_needs_no_brackets() -> None:
    assert build(Whole, {"path": "x", **from_words(["--names", "attention"])}).names == ("attention",)
    assert build(Whole, {"path": "x", **from_words(["--names", "[a, b]"])}).names == ("a", "b")


def test_what_is_wrong_in_words_is_not_blamed_on_the_file() -> None:
    with pytest.raises(DaybreakError, match=r"^steps is 1\.5"):
        build_given(Whole, {"path": "x"}, "a.yaml", {"steps": 1.5})
    with pytest.raises(DaybreakError, match=r"^a\.yaml: steps is 1\.5"):
        build_given(Whole, {"path": "x", "steps": 1.5}, "a.yaml", {"on": True})
    # What is given can correct the file.
    assert build_given(Whole, {"steps": "many"}, "a.yaml", {"path": "x", "steps": 2}).steps == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part.rat", "1"], "'part.rat' (did you mean 'rate'?)"),
        (["--part.rate", "fast"], "part.rate is 'fast'"),
        (["--steps", "1.5"], "steps is 1.5"),
        (["--steps", "yes"], "steps is True"),
        (["--sources", "[{weight: 2}]"], "sources[0].name is not given"),
        (["--sources", "{a: 2}"], "sources must be a list"),
        (["--part", "3"], "part must hold fields"),
        (["--part.rate", "1", "--part.rate", "2"], "given twice"),
        (["steps", "1"], "no setting"),
        (["--steps"], "no value"),
        (["--part", "3", "--part.rate", "2"], "beside a value"),
    ],
)
def test_what_does_not_fit_is_named(words: list[str], said: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        build(Whole, merged({"path": "x"}, from_words(words)))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("a: 1\na: 2\n", "twice"), ("- 1\n", "key: value"), ("a: [", "no YAML"), ("", "None")]
)
def test_files_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(DaybreakError, match=said):
        read_yaml(file)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=r"none\.yaml cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_what_changed() -> None:
    other = build(Whole, merged(to_tree(WHOLE), {"part": {"rate": 0.7}, "steps": None}))
    assert changed(WHOLE, other) == {"part.rate": (0.5, 0.7), "steps": (3, None)}
