"""`daybreak align reward`, `dpo`, `best-of` and `compare`, as people call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import daybreak
from daybreak.cli.main import run
from tests.unit.test_preference_training import louder
from tests.unit.tiny_models import speaking
from tests.unit.tiny_rankings import written

FAST = ["--device", "cpu", "--batch.examples", "8", "--optimizer.lr", "3e-4", "--schedule.warmup", "0 steps"]
FOUND = ["--kl.prompts", "2", "--kl.tokens", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start, rankings, and a reward model that has learned from them."""
    found = tmp_path_factory.mktemp("preferences")
    louder(speaking()).save(found / "start")
    written(found / "rankings.jsonl", 60, most=3)
    arguments = ["align", "reward", str(found / "start"), str(found / "rankings.jsonl"), *FAST]
    assert run([*arguments, "--out", str(found / "rm"), "--epochs", "2"]) == 0
    return found


def called(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = run(["align", *map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_a_reward_model_is_trained_and_reported_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reward", folder / "start", folder / "rankings.jsonl", *FAST, "--out", folder / "rm"]
    status, out, _ = called(capsys, *arguments, "--epochs", "2")
    assert status == 0 and "steps done; held out: loss" in out  # it was done already
    told = json.loads((folder / "rm" / "model" / "reward.json").read_text())
    assert f"right about {told['held_out']['accuracy']:.1%} of {told['held_out']['pairs']} pairs" in out
    assert "prompts with 2 answers" in out and "correlation of reward and length" in out
    assert f"--reward {folder / 'rm' / 'model'}" in out


def test_nothing_held_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reward", folder / "start", folder / "rankings.jsonl", *FAST, "--out", folder / "unknown"]
    status, out, _ = called(capsys, *arguments, "--steps", "1", "--data.held_out", "0")
    assert status == 0 and "held out: nothing, so nobody knows how good it is; give more prompts" in out


def test_a_run_of_another_command_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = called(capsys, "ppo", folder / "start", "x.jsonl", "--out", folder / "rm")
    assert status == 2 and f"{folder / 'rm'} holds a run of another command" in err and "with --out" in err
    status, _, err = called(
        capsys, "reward", folder / "start", "x", "--out", folder / "rm", "--lora.bits", "5"
    )
    assert status == 2 and err.startswith("error: lora.bits is 5")  # and not settings.yaml's


def test_a_policy_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["dpo", folder / "start", folder / "rankings.jsonl", *FAST, *FOUND]
    how = ["--loss", "ipo", "--beta", "0.5", "--steps", "2", "--out", folder / "policy", "--json"]
    status, out, _ = called(capsys, *arguments, *how)
    told = json.loads(out)
    assert status == 0 and told["steps"] == 2 and {"margin", "kl_k3"} <= set(told["held_out"])
    daybreak.load(told["model"])
    status, out, _ = called(capsys, "dpo", "x", "--print-config", "--json", "--loss", "kto", "--beta", "0.2")
    assert json.loads(out)["loss"] == {**json.loads(out)["loss"], "name": "kto", "beta": 0.2}


def test_the_best_of_several_answers_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["best-of", folder / "start", folder / "rankings.jsonl", "--reward", folder / "rm" / "model"]
    status, out, err = called(capsys, *common, "-n", "3", "--max-new-tokens", "4")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(rows) == 60
    assert all(row["reward"] == max(row["rewards"]) and len(row["rewards"]) == 3 for row in rows)
    assert "at most 0.432 nats" in err
    status, out, _ = called(
        capsys, *common, "-n", "2", "--max-new-tokens", "4", "--out", folder / "new" / "best.jsonl"
    )
    assert status == 0 and out == "" and len((folder / "new" / "best.jsonl").read_text().splitlines()) == 60
    status, _, err = called(capsys, *common, "--out", folder)
    assert status == 2 and "is a folder; name a file with --out" in err and "answers written" not in err


def test_models_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["compare", "--reference", folder / "start", "--prompts", folder / "rankings.jsonl"]
    common += ["--reward", folder / "rm" / "model", "--max-new-tokens", "4"]
    status, out, _ = called(
        capsys, *common, f"twin={folder / 'start'}", "--best-of", "4", "--out", folder / "compared"
    )
    assert status == 0
    assert out.splitlines()[0].startswith("model ") and "twin" in out and "best of 4" in out
    assert (folder / "compared" / "compare.png").is_file()
    status, out, _ = called(capsys, *common, "--best-of", "2", "--json")
    assert status == 0 and json.loads(out)["rows"][0]["name"] == "best of 2"
    status, _, err = called(capsys, *common)
    assert status == 2 and "name models to compare, or --best-of 16" in err
    status, _, err = called(capsys, *common, "--best-of", "2", "--out", folder / "rankings.jsonl")
    assert status == 2 and "rankings.jsonl is no folder; name another with --out" in err


def test_wrong_input_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = called(
        capsys, "reward", folder / "start", folder / "absent.jsonl", "--out", folder / "x"
    )
    assert status == 2 and "absent.jsonl cannot be read" in err
    status, _, err = called(capsys, "reward", "--out", folder / "x")
    assert status == 2 and "name the model to start from" in err
    status, _, err = called(capsys, "dpo", folder / "start", folder / "rankings.jsonl")
    assert status == 2 and "give a folder for the run" in err
    status, _, err = called(
        capsys, "best-of", folder / "start", folder / "rankings.jsonl", "--reward", folder / "start"
    )
    assert status == 2 and "no reward model; give a model that" in err
    status, _, err = called(
        capsys, "best-of", folder / "start", folder / "rankings.jsonl", "--reward", folder / "rm"
    )
    assert status == 2 and f"no checkpoint; give {folder / 'rm' / 'model'}" in err
