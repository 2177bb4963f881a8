"""What a wrong word brings: one line that names it, nothing written, exit status 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from daybreak.cli.main import run
from tests.unit.tiny_run import data_set

TINY = "--model.changes.layers 1 --model.changes.width 16 --model.changes.heads 2 --precision.compile false"

WRONG = {
    "no folder for the run": ("pretrain --model.family gpt2 --data.folder data --length '2 steps'", "--out"),
    "no data": ("pretrain --out runs/first --model.family gpt2 --length '2 steps'", "--data"),
    "no such data": (
        "pretrain --out runs/first --model.family gpt2 --length '2 steps' --data.folder nowhere",
        "nowhere",
    ),
    "no such recipe": ("pretrain --out runs/first --recipe gpt3-125n --data.folder data", "gpt3-125m"),
    "no such setting": ("pretrain --out runs/first --data.folder data --optimizer.rate 1", "rate"),
    "no such family": (
        "pretrain --out runs/first --data.folder data --length '2 steps' --model.family gpt9",
        "gpt9",
    ),
    "a length without a unit": (
        f"pretrain --out runs/first --data.folder data --model.family gpt2 {TINY} --length 2",
        "length",
    ),
    "a rate that is a word": (
        "pretrain --out runs/first --data.folder data --optimizer.lr fast",
        "optimizer.lr",
    ),
    "no such settings file": ("pretrain missing.yaml --out runs/first --data.folder data", "missing.yaml"),
    "settings that are no YAML": ("pretrain broken.yaml --out runs/first --data.folder data", "broken.yaml"),
    "no such run": ("runs show runs/absent", "runs/absent"),
    "a replay of no run": ("data replay absent --step 1", "absent"),
    "no such recipe for data": ("data build absent.yaml", "absent.yaml"),
    "a broken recipe for data": ("data build broken.yaml", "broken.yaml"),
    "no such data set": ("data stats absent", "absent"),
    "no such mixture": ("data mix --like piles", "piles"),
    "no text for a tokenizer": ("tokenizer train absent --out tokenizer --vocabulary 300", "absent"),
    "no tokenizer to compare": ("tokenizer compare absent --text notes.txt", "absent"),
}


@pytest.mark.parametrize(("words", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_word_is_named(
    words: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data_set(tmp_path / "data", 20)
    (tmp_path / "broken.yaml").write_text("model: [1, 2\n")
    (tmp_path / "notes.txt").write_text("the sun rose\n")
    before = sorted(tmp_path.rglob("*"))
    assert run(shlex.split(words)) == 2
    printed = capsys.readouterr()
    assert named in printed.err and "Traceback" not in printed.err
    assert printed.err.count("\n") == 1, printed.err
    assert sorted(tmp_path.rglob("*")) == before
