"""The demo's labeller and texts; the whole of it is in a slow test."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak.align.demo.labeller import NOTHING, Label, labelled
from daybreak.align.demo.report import spread, table
from daybreak.align.demo.run import demo
from daybreak.align.demo.settings import DemoSettings
from daybreak.align.demo.stages import Stages, Stopped
from daybreak.align.demo.texts import Texts, demonstrations, examples, write_shards
from daybreak.architecture import Rotary
from daybreak.cli.main import run
from daybreak.data.standard_library import SourceFile
from daybreak.data.token_shards import TokenSet
from daybreak.errors import DaybreakError
from tests.unit.tiny_models import speaking
from tests.unit.tiny_run import Silent, byte_tokenizer

GOOD = 'def f(x):\n    """Double a number."""\n    return 2 * x\n'


@pytest.mark.parametrize(
    ("source", "points"),
    [
        (GOOD, "parses documented returns used"),
        ('def f(x):\n    """Double."""\n    return 2 * x\n', "parses returns used"),
        ("def f(x):\n    # Double a number.\n    return 2 * x\n", "parses returns used"),
        ('def f(x):\n    """Double a number."""\n    print(x)\n', "parses documented used"),
        ('def f(x):\n    """Double a number."""\n    return None\n', "parses documented"),
        ('def f(x):\n    """Double a number."""\n    return y\n', "parses documented returns"),
        ('def f(x):\n    """Double a number."""\n', "parses documented"),
        ('def f():\n    """Count to three."""\n    yield from range(3)\n', "parses documented returns used"),
        ('def f(self):\n    """Say who it is."""\n    return self.name\n', "parses documented returns used"),
        (
            'def f(*args, key=None):\n    """Pass it all on."""\n    return g(key)\n',
            "parses documented returns used",
        ),
        ("def f(x):\n    x = 1\n", "parses"),
        (GOOD + GOOD, ""),
        (GOOD + "print(1)\n", ""),
        ("def f(x):\n    return (x\n", ""),
        ("def f(x):", ""),
        ("x = 1\n", ""),
        ("def f(x):\n    return '\0'\n", ""),
    ],
)
def test_the_labeller_asks_for_what_it_says(source: str, points: str) -> None:
    label = labelled(source)
    assert [name for name, given in vars(label).items() if given] == points.split()
    assert label.score == len(points.split())
    assert labelled(source, ended=False) == NOTHING


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="defx():=\n \"'return1#\\\t", max_size=60))
def test_the_labeller_takes_any_text(text: str) -> None:
    assert 0 <= labelled(f"def f(x):\n    {text}").score <= 4


def files(*texts: str) -> list[SourceFile]:
    return [SourceFile(f"file{number}.py", text.encode()) for number, text in enumerate(texts)]


def test_examples_are_first_lines_and_the_rest() -> None:
    found = examples(
        files(f"import x\n\n{GOOD}\n{GOOD}", "class A:\n    def g(self):\n        pass\n"),
        byte_tokenizer(),
        90,
        90,
    )
    assert [(one.prompt, one.answer) for one in found] == [
        ("def f(x):", '\n    """Double a number."""\n    return 2 * x\n'),
        ("def g(self):", "\n    pass\n"),
    ]
    assert [one.prompt for one in demonstrations(found)] == ["def f(x):"]
    assert [one.prompt for one in examples(files(GOOD), byte_tokenizer(), 20, 90)] == []
    assert [one.prompt for one in examples(files(GOOD), byte_tokenizer(), 90, 9)] == []


def test_the_files_become_token_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, Texts(files(GOOD, "x = 1\n"), files("y = 2\n")), byte_tokenizer(), 16)
    data = TokenSet.open(tmp_path, verify=True)
    assert data.sources[0].tokens == len(GOOD) + len("x = 1\n") + 2
    assert data.tokenizer().vocabulary == 257


def test_figures_of_several_seeds() -> None:
    assert (
        spread([1.0], 2) == "1.00" and spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0" and spread([None], 1) == ""
    )
    figures: dict[str, Any] = dict.fromkeys(
        ("label", "full", "reward", "kl", "bits_per_byte", "length", "ended", "distinct"), 1.0
    )
    made = {"models": dict.fromkeys(("base", "sft", "dpo", "ppo", "ppo-ptx"), figures)}
    assert table([made, made]).count("1.00 ± 0.00") == 15


@pytest.mark.parametrize(
    ("given", "said"),
    [({"minutes": 0}, "minutes is 0"), ({"seeds": 0}, "seeds is 0"), ({"room": 2}, "room is 2")],
)
def test_settings_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DaybreakError, match=said):
        DemoSettings(**given)


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """A model of bytes that ends soon, and files of short functions."""
    model = speaking("gpt_j", positions=Rotary(8, "neighbours"))
    with torch.no_grad():
        model.decoder.head.bias[256] = 4.0
    model.save(tmp_path / "start")
    for number in range(12):
        names = [f"{letter}{number}" for letter in "abcdefgh"]
        text = "".join(f'def {name}(x):\n    """A b c."""\n    return x\n\n' for name in names)
        (tmp_path / "library" / f"file{number}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "library" / f"file{number}.py").write_text(text)
    return {"model": str(tmp_path / "start"), "source": tmp_path / "library", "room": 44, "minutes": 0.01}


def easily_pleased(source: str, ended: bool = True) -> Label:
    """Whatever the tiny model writes, some of it is better."""
    return Label(ended, len(source) % 2 == 0, len(source) % 3 == 0, False)


def test_all_stages_in_small(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daybreak.align.demo.measure.labelled", easily_pleased)
    monkeypatch.setattr("daybreak.align.demo.recipe.LEAST_ACCURACY", None)
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    folder = tmp_path / "demo"
    assert run(["align", "demo", *words, "--seeds", "2", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "| PPO-ptx |" in printed and " ± " in printed and "bits per byte of held-out text" in printed
    for name in ("table.md", "curves.png", "answers.md", "result.json", "seed-1/ppo-ptx/logbook.md"):
        assert (folder / name).stat().st_size > 100
    results = json.loads((folder / "result.json").read_text())
    for result in results:
        assert result["models"]["sft"]["kl"] is None and result["models"]["ppo"]["kl"] >= 0
        assert 0 <= result["models"]["ppo"]["label"] <= 4 and result["reward_accuracy"] is not None
    assert results[0]["models"] != results[1]["models"]
    again = demo(DemoSettings(**small, seeds=2), folder, Silent())  # nothing is done twice
    assert list(again.results) == results
    with pytest.raises(DaybreakError, match=r"holds a demo with minutes 0\.01, not 1"):
        demo(DemoSettings(**{**small, "minutes": 1.0}), folder, Silent())


def test_the_time_of_all_sessions_counts(tmp_path: Path) -> None:
    for ended in (Stopped, None):
        stages = Stages(DemoSettings(), 0, tmp_path, Texts((), ()), Silent())
        with contextlib.suppress(Stopped), stages._stage("sft"):
            time.sleep(0.02)
            if ended is not None:
                raise ended
    assert json.loads((tmp_path / "seconds.json").read_text()) == stages.seconds
    assert stages.seconds["sft"] >= 0.04


def test_a_model_whose_answers_are_all_alike_is_too_weak(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match="too few to rank: the model is too weak still"):
        demo(DemoSettings(**small), tmp_path / "demo", Silent())


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    """With a model of its own, at a fifth of the usual length: the labeller is pleased more often."""
    found = demo(DemoSettings(minutes=5), tmp_path / "demo", Silent())
    models = found.results[0]["models"]
    assert models["ppo"]["label"] > models["sft"]["label"] > models["base"]["label"]
