"""`daybreak infill` as people call it."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

import daybreak
from daybreak.cli.main import run
from daybreak.engine.infill import InfillStream, Piece
from tests.unit.blank_models import SHAPE, model_of

CALM = ["--temperature", "0", "-m", "4", "--repetition-penalty", "3"]
SETTINGS: dict[str, Any] = {"temperature": 0, "max_new_tokens": 4, "repetition_penalty": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    model_of("glm").save(path)
    return str(path)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(["infill", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_a_saved_model_fills_what_it_filled_before(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "The [MASK] fox [sMASK]"
    expected = model_of("glm").infill(text, **SETTINGS)[0]
    assert daybreak.load(folder).infill(text, **SETTINGS)[0] == expected
    assert called(capsys, folder, text, *CALM) == (0, expected.text + "\n", "")


def test_json_has_one_object_per_line(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["one [MASK] two", "three [MASK] [gMASK]"]
    status, out, _ = called(capsys, folder, *texts, "--json", *CALM, "--logprobs", "1")
    results = model_of("glm").infill(texts, **SETTINGS)
    objects = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(objects) == 2
    for found, result, text in zip(objects, results, texts, strict=True):
        assert (found["prompt"], found["text"], found["tokens"]) == (text, result.text, result.tokens)
        for entry, blank in zip(found["blanks"], result.blanks, strict=True):
            for name in ("mask", "text", "tokens", "finish_reason"):
                assert entry[name] == getattr(blank, name)
            assert [place["token"] for place in entry["logprobs"]] == blank.tokens


def test_several_texts_and_standard_input(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["one [MASK]", "two [MASK]"]
    one, two = (result.text for result in model_of("glm").infill(texts, **SETTINGS))
    listed = f"[text 1]\n{one}\n\n[text 2]\n{two}\n\n"
    assert called(capsys, folder, *texts, *CALM)[1] == listed
    monkeypatch.setattr(sys, "stdin", io.StringIO("one [MASK]\ntwo [MASK]\n"))
    assert called(capsys, folder, "-", "--lines", *CALM)[1] == listed
    monkeypatch.setattr(sys, "stdin", io.StringIO("one [MASK]\n"))
    assert called(capsys, folder, "-", *CALM)[1] == one + "\n"


def test_on_a_terminal_what_was_written_is_underlined(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    pieces = [Piece("one ", None), Piece("two", 0), Piece(" three", None)]
    monkeypatch.setattr(InfillStream, "__iter__", lambda self: iter(pieces))
    assert called(capsys, folder, "one [MASK]")[1] == "one \033[4mtwo\033[0m three\n"


def test_what_is_written_stays_when_interrupted(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: InfillStream) -> Any:
        yield Piece("so far", 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(InfillStream, "__iter__", interrupted)
    assert called(capsys, folder, "one [MASK]")[:2] == (130, "so far\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no blank"], "has no blank"),
        (["[gMASK] [gMASK]"], "before its end"),
        (["a [MASK]", "--logprobs", "1"], "add --json"),
        (["a [MASK]", "--temperature", "-1"], "temperature is -1.0"),
        (["a \udce9 [MASK]"], "not UTF-8"),
        (["a [MASK]", "--prompt-logprobs", "1"], "--prompt-logprobs"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], named: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = called(capsys, folder, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_a_model_without_blanks_says_which_families_have_them(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    daybreak.create("gpt2", vocabulary=290, **SHAPE).save(tmp_path)
    status, _, err = called(capsys, str(tmp_path), "a [MASK]")
    assert status == 2 and "cannot fill blanks; families that can: glm, glm_130b, chatglm" in err
