"""The whole command on a handful of files, for every design, in a few steps."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import daybreak
from daybreak import families
from daybreak.cli.main import run
from daybreak.data.standard_library import standard_library
from daybreak.quickstart.loop import Point

SIZES = {"vocabulary": 300, "layers": 1, "width": 16, "heads": 2, "context": 256, "batch": 2, "samples": 8}
SIZE_OPTIONS = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
SMALL = [*SIZE_OPTIONS, "--steps", "2", "--no-compile"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small files of the library."""
    folder = tmp_path_factory.mktemp("source")
    small = [file for file in standard_library() if len(file.content) < 6000 and b"    def " in file.content]
    for file in small[:60]:
        (folder / file.name.replace("/", "_")).write_bytes(file.content)
    return folder


def quickstart(source: Path, out: Path, *more: str) -> int:
    return run(["quickstart", *SMALL, "--source", str(source), "--out", str(out), *more])


@pytest.mark.parametrize("family", families.NAMES)
def test_every_design_trains_and_is_saved(
    family: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert quickstart(source, out, "--family", family, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""  # no terminal, no progress
    assert report["finished"] and report["settings"]["family"] == family
    assert (report["steps"], report["tokens"]) == (2, 2 * 2 * 256)
    assert 3 < report["bits_per_byte"] < 10
    assert 0 < report["xz"]["after_training"] < report["xz"]["alone"] < 8
    assert report["parsed"]["samples"] == 8 and report["parsed"]["real"] >= report["parsed"]["untrained"]
    model = daybreak.load(out)
    assert model.family.name == family
    marks = families.by_name(family).blank_tokens
    assert model.tokenizer is not None and model.tokenizer.vocabulary == 300 + len(marks)
    assert (report["infilled"] is None) == (not marks)
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == report["parameters"]
    assert len(model.generate("def f(x):", max_new_tokens=3)[0].tokens) == 3


@pytest.mark.parametrize("family", ["glm", "glm_130b", "chatglm"])
def test_what_learned_to_fill_blanks_fills_lines(
    family: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert quickstart(source, out, "--family", family) == 0
    text = capsys.readouterr().out
    assert "deleted lines written back, of " in text and "deleted line 1" in text
    report = json.loads((out / "quickstart.json").read_text())
    found = report["infilled"]
    assert 0 <= found["exact"]["low"] <= found["exact"]["value"] <= found["exact"]["high"] < 0.2
    assert 0 <= found["tokens"]["low"] <= found["tokens"]["value"] <= found["tokens"]["high"] < 0.5
    assert len(report["examples"]) == 3
    capsys.readouterr()
    mark = families.by_name(family).blank_tokens["sentence"]
    assert run(["infill", str(out), f"def f(x):\n    {mark}\n", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("def f(x):\n    ")


def test_a_design_with_blanks_also_learns_from_left_to_right(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--family", "glm", "--objective", "causal", "--json"]
    assert quickstart(source, tmp_path / "run", *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["infilled"] is None and not report["examples"]
    assert 3 < report["bits_per_byte"] < 10


def test_transformers_opens_the_folder_and_computes_the_same(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert quickstart(source, tmp_path / "run", "--json") == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    ours = daybreak.load(tmp_path / "run")
    text = "class Thing:\n    def first(self):\n        return 1\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ours.tokenizer is not None and ours.tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text
    logits = model(torch.tensor([ids])).logits
    torch.testing.assert_close(ours.logits(torch.tensor([ids])), logits, rtol=1e-4, atol=1e-5)


def test_a_number_of_steps_is_reproduced_exactly(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert quickstart(source, tmp_path / name, "--json") == 0
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_budget_of_time_is_kept_to(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SIZE_OPTIONS, "--seconds", "1", "--no-compile", "--json"]
    assert run(["quickstart", *words, "--source", str(source), "--out", str(tmp_path / "run")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] > 2
    assert report["seconds"]["training"] < 4


def test_the_report_in_words(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart(source, tmp_path / "run", "--steps", "20") == 0
    text = capsys.readouterr().out
    for words in ("bits per byte", "xz -9e, given the training text first", "untrained", "completion 1"):
        assert words in text
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("quickstart.json", "metrics.jsonl", "loss.png"),
    }
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [10, 20]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_earlier_run_is_replaced_and_nothing_else(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert quickstart(source, out) == 2
    assert "no earlier run" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert quickstart(source, out, "--force") == 0
    assert not (out / "notes.txt").exists()
    assert quickstart(source, out) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_what_it_has(
    number: signal.Signals,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(self: object, point: Point) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("daybreak.cli.live.Live.point", interrupt)
    assert quickstart(source, tmp_path / "run", "--steps", "1000") == 130
    assert "interrupted: the model is saved as it was" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "quickstart.json").read_text())
    assert report["steps"] == 10 and not report["finished"] and report["bits_per_byte"] is None
    assert daybreak.load(tmp_path / "run").architecture.width == 16


def test_interrupted_before_the_first_step_an_earlier_run_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert quickstart(source, out) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def interrupt(self: object, name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("daybreak.cli.live.Live.phase", interrupt)
    assert quickstart(source, out) == 130
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_no_source_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((tmp_path / "nowhere", "no folder"), (empty, "no Python source")):
        assert quickstart(folder, tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == [empty]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0"], "layers is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--seconds", "0"], "seconds is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--family", "gpt_neo_x"], "did you mean"),
        (["--width", "17"], "not divisible"),
        (["--objective", "masked"], "must be causal or blank-infilling"),
        (["--objective", "blank-infilling"], "no tokens for blanks; take one of glm"),
    ],
)
def test_wrong_settings_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quickstart", *words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_was_learned_is_kept_where_scoring_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object) -> float:
        raise ValueError("no score")

    monkeypatch.setattr("daybreak.quickstart.run.bits_per_byte", fail)
    assert quickstart(source, tmp_path / "run") == 2
    assert "run-unscored: no score" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert daybreak.load(tmp_path / "run-unscored").tokenizer is not None
