"""Replaying a step: the documents and the text that a run read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daybreak import settings as reading
from daybreak.cli.main import run as command
from daybreak.data.loader import Loader
from daybreak.errors import DaybreakError
from daybreak.text.train_tokenizer import train_tokenizer
from daybreak.train.replay import replay
from daybreak.train.settings import DataSettings, Settings
from tests.unit.token_data import built

LENGTH = 8
TEXTS = ["the sun rose over the hill", "and the rain fell on the town", "nobody had seen the sea before"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run of five steps, written by hand: a skip in step 3, and the figures of a later roll back."""
    tokenizer = train_tokenizer(TEXTS, 300)
    documents = [tokenizer.encode(text) for text in TEXTS]
    data = built(tmp_path / "data", {"a": [documents], "b": [documents[:1], documents[1:]]})
    tokenizer.save(tmp_path / "data" / "tokenizer")
    folder = tmp_path / "run"
    folder.mkdir()
    settings = Settings(
        seed=7, data=DataSettings(folder=data.folder, context=LENGTH, weights={"a": 1, "b": 3})
    )
    (folder / "settings.yaml").write_text(reading.to_yaml(settings))
    lines: list[dict[str, Any]] = [{"step": 0, "session": 1, "time": "2026-01-01T00:00:00Z"}]
    for step in range(1, 6):
        event = "loss spike" if step == 3 else None
        lines.append({"step": step, "position": 100 + 4 * step, "sequences": 4, "loss": 1.0, "event": event})
    lines.append({"step": 4, "evaluation": {"all": {"loss": 1.0, "bits_per_byte": 1.0}}})
    lines.append({"step": 5, "rolled_back": {"from": 9, "event": "gradient spike"}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 6, "position": 124, "seq')
    return folder


def test_the_documents_of_a_step_are_those_it_read(trained: Path) -> None:
    found = replay(trained, 3)
    assert (found.sequences, found.event) == (range(112, 116), "loss spike")
    loader = Loader(found.data, LENGTH, 7, {"a": 1, "b": 3})
    assert found.documents == loader.documents(range(112, 116))
    assert sum(read.tokens for read in found.documents) == 4 * LENGTH
    assert [read.sequence for read in found.documents] == sorted(read.sequence for read in found.documents)
    tokens = loader.windows([113]).tokens[0, :-1].tolist()
    assert found.text(113) == found.data.tokenizer().decode(tokens, skip_special=False)
    assert any(found.text(113)[:4] in text for text in TEXTS)
    with pytest.raises(DaybreakError, match="step 3 read the sequences 112 to 115, not 3"):
        found.text(3)


def test_steps_that_do_not_hold_are_refused(trained: Path) -> None:
    for step in (8, 9):
        with pytest.raises(DaybreakError, match="went back from step 9 to step 5, after a gradient spike"):
            replay(trained, step)
    file = trained / "metrics.jsonl"
    for step in (6, 7):  # the run has gone on since
        line = {"step": step, "position": 100 + 4 * step, "sequences": 4, "loss": 1.0, "event": None}
        file.write_text(file.read_text().rpartition("\n")[0] + "\n" + json.dumps(line) + "\n")
    assert replay(trained, 7).sequences == range(128, 132)
    with pytest.raises(DaybreakError, match=r"1 to 7 of .*went back from step 9 to step 5"):
        replay(trained, 8)


def test_steps_that_never_were_are_refused(trained: Path) -> None:
    for step in (0, -1, 10):
        with pytest.raises(DaybreakError, match=f"step {step} is not among the steps 1 to 5 of .*run$"):
            replay(trained, step)


def test_what_is_no_run_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match="is no run; give a folder that `daybreak pretrain` wrote"):
        replay(tmp_path / "nothing", 1)
    (trained / "metrics.jsonl").unlink()
    with pytest.raises(DaybreakError, match=r"metrics\.jsonl is missing"):
        replay(trained, 1)


def test_moved_data_is_found_and_other_data_is_refused(trained: Path, tmp_path: Path) -> None:
    whole = replay(trained, 2)
    checkpoint = trained / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    numbers = {"numbers": {"data": whole.loader.fingerprint}}
    (checkpoint / "numbers.json").write_text(json.dumps(numbers))
    (trained / "checkpoints" / "step-00000005.partial").mkdir()
    moved = tmp_path / "elsewhere"
    (tmp_path / "data").rename(moved)
    assert replay(trained, 2, moved).documents == whole.documents
    with pytest.raises(DaybreakError, match="data is no finished data set"):
        replay(trained, 2)
    built(tmp_path / "data", {"a": [[[1] * 20]], "b": [[[2] * 20]]})
    with pytest.raises(DaybreakError, match=r"is not the data that .*run read.*--data"):
        replay(trained, 2)


def test_without_a_context_of_its_own_the_run_read_as_the_data_says(trained: Path) -> None:
    text = (trained / "settings.yaml").read_text()
    assert "  context: 8\n" in text
    (trained / "settings.yaml").write_text(text.replace("  context: 8\n", "  context: null\n"))
    assert replay(trained, 1).loader.length == LENGTH  # what `built` writes into the manifest


def test_the_command_lists_documents_and_prints_text(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = replay(trained, 3)
    assert command(["data", "replay", str(trained), "--step", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 3: sequences 112 to 115, ") and lines[0].endswith(
        "documents, loss spike"
    )
    assert lines[2].split() == ["sequence", "source", "epoch", "tokens", "language", "document"]
    assert len(lines) == 3 + len(found.documents)
    assert command(["data", "replay", str(trained), "--step", "3", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["sequences"] == {"first": 112, "last": 115}
    keys = ["sequence", "source", "epoch", "file", "place", "id", "language", "tokens"]
    assert [list(each) for each in tree["documents"]] == [keys] * len(found.documents)
    assert [each["id"] for each in tree["documents"]] == [read.document.id for read in found.documents]
    assert command(["data", "replay", str(trained), "--step", "3", "--text", "114"]) == 0
    assert capsys.readouterr().out == found.text(114) + "\n"
    assert command(["data", "replay", str(trained), "--step", "7"]) == 2
    assert "went back" in capsys.readouterr().err
