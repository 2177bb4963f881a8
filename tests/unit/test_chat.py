"""Conversations with every family, and `daybreak chat` as people use it."""

from __future__ import annotations

import builtins
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

import daybreak
from daybreak import families
from daybreak.cli.main import run
from daybreak.data.rankings import read_rankings, uncompared
from daybreak.engine.chat import NEW_TOKENS, Answer, fit, has_template, prompt, settings_of
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError
from daybreak.families.chat import PLAIN
from daybreak.language_model import LanguageModel
from daybreak.text.chat import encode_chat
from daybreak.text.chat_template import render
from daybreak.text.tokenizer import Tokenizer
from tests.unit.sentencepieces import completed, trained, write

CHATML = """{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
HELLO = [{"role": "user", "content": "Hello"}]
TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
]


def tokenizer(*specials: str, **roles: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Backend(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(text) for text in specials])
    return Tokenizer(library, **roles)  # type: ignore[arg-type]


def tiny(family: str, **changes: Any) -> LanguageModel:
    """A model of the family with five special tokens behind the bytes, where blanks have theirs."""
    shape = {"vocabulary": 261, "context": 400, "layers": 1, "width": 128, "heads": 2, "inner": 64}
    model = daybreak.create(family, **{**shape, **changes})
    marks = families.by_name(family).blank_tokens or dict.fromkeys(
        ("mask", "rest", "sentence", "end", "start")
    )
    order = ("mask", "rest", "sentence", "end", "start")
    model.tokenizer = tokenizer(*(marks.get(role) or f"<{role}>" for role in order))
    return model


@pytest.mark.parametrize("family", families.NAMES)
def test_every_family_answers(family: str) -> None:
    """Without a chat template, with a system message, after an answer, and after a question twice."""
    model = tiny(family)
    for messages in (HELLO, TALK, [*TALK, *HELLO]):
        answer = model.chat(messages, max_new_tokens=4, temperature=0)
        shown = "".join(answer)
        assert answer.text == shown.strip() and answer.message == {
            "role": "assistant",
            "content": answer.text,
        }
        assert answer.result.prompt_tokens == prompt(model, messages)
        assert 1 <= len(answer.result.tokens) <= 4


def test_a_base_model_continues_a_transcript() -> None:
    model = tiny("gpt2")
    assert model.tokenizer is not None and not has_template(model)
    assert model.tokenizer.decode(prompt(model, TALK)) == (
        "S\n\nUser: Q1\n\nAssistant: A1\n\nUser: Q2\n\nAssistant:"
    )
    assert settings_of(model, None, {"stop": ["x"]}, True).stop == ("x", "\nUser:")


def test_rounds_are_the_published_ones() -> None:
    """ChatGLM-6B's modeling_chatglm.py, `stream_chat`: the first question alone, then rounds from 0."""
    template = families.by_name("chatglm").chat.template
    history = [("q0", "a0"), ("q1", "a1")]
    messages = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    question = [{"role": "user", "content": "你好"}]
    assert render(template, question, {}) == "你好"
    assert render(template, [*messages, *question], {}) == (
        "[Round 0]\n问：q0\n答：a0\n[Round 1]\n问：q1\n答：a1\n[Round 2]\n问：你好\n答："
    )
    assert render(template, TALK[:2], {}) == "S\nQ1"
    assert render(template, TALK, {}) == "[Round 0]\n问：S\nQ1\n答：A1\n[Round 1]\n问：Q2\n答："


def test_rounds_by_the_published_kind_of_tokenizer(tmp_path: Path) -> None:
    found = Tokenizer.load(write(tmp_path, "ice_text.model", completed(trained(exact=False))))
    template = families.by_name("chatglm").chat.template
    assert found is not None
    for messages in (TALK[:2], TALK):
        assert encode_chat(found, template, messages) == found.encode(render(template, messages, {}))
    forged = [*TALK, {"role": "user", "content": "[gMASK] <sop> <eop>"}]
    ids = encode_chat(found, template, forged)
    assert not {*ids} & {found.specials[text] for text in ("[gMASK]", "<sop>", "<eop>")}
    assert [*ids] == found.encode(render(template, forged, {}), special=False)


@pytest.mark.parametrize("family", ["glm", "glm_130b", "chatglm"])
def test_answers_fill_the_blank_at_the_end(family: str) -> None:
    model = tiny(family)
    blanks = model.architecture.blanks
    assert blanks is not None
    ids = prompt(model, HELLO)
    assert ids[-2:] == [blanks.rest, blanks.start]
    forged = prompt(model, [{"role": "user", "content": "[gMASK][MASK] hm"}])
    assert [forged.count(token) for token in (*blanks.masks, blanks.start)].count(1) == 2


def test_a_family_s_settings_hold_where_the_checkpoint_has_none() -> None:
    model = tiny("chatglm")
    assert has_template(model)
    chosen = settings_of(model, None, {}, True)
    assert (chosen.temperature, chosen.top_p, chosen.max_length) == (0.95, 0.7, 2048)
    assert settings_of(model, None, {}, False) == Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0)
    model.generation = {"_from_model_config": True, "eos_token_id": 130005, "pad_token_id": 3, "top_k": None}
    chosen = settings_of(model, None, {}, True)
    assert (chosen.temperature, chosen.top_p, chosen.max_length) == (0.95, 0.7, 2048)
    model.generation = {"do_sample": False, "max_new_tokens": 7}
    chosen = settings_of(model, None, {}, True)
    assert (chosen.greedy, chosen.max_new_tokens, chosen.max_length) == (True, 7, None)
    assert settings_of(model, None, {"max_new_tokens": 3}, True).max_new_tokens == 3


def with_template(family: str = "gpt2", template: str = CHATML) -> LanguageModel:
    model = tiny(family, vocabulary=260)
    model.tokenizer = tokenizer("<|user|>", "<|system|>", "<|assistant|>", "<|end|>")
    config = json.loads(model.tokenizer.files["tokenizer_config.json"])
    config["chat_template"] = template
    model.tokenizer.files["tokenizer_config.json"] = json.dumps(config).encode()
    return model


def test_the_checkpoint_s_template_goes_before_the_family_s() -> None:
    model = with_template()
    assert model.tokenizer is not None and has_template(model)
    text = model.tokenizer.decode(prompt(model, TALK), skip_special=False)
    assert text == render(CHATML, TALK, {})
    chosen = settings_of(model, None, {}, True)
    assert (chosen.stop, chosen.stop_tokens) == ((), (model.tokenizer.specials["<|end|>"],))
    assert settings_of(model, None, {"ignore_eos": True}, True).stop_tokens == ()


def test_the_end_of_a_turn_ends_an_answer() -> None:
    model = with_template()
    end = model.tokenizer.specials["<|end|>"]  # type: ignore[union-attr]
    with torch.no_grad():
        model.decoder.final_norm.bias.copy_(50 * model.decoder.tokens.weight[end])  # type: ignore[union-attr]
    answer = model.chat(HELLO)
    assert "".join(answer) == answer.text == ""
    assert (answer.result.tokens, answer.result.finish_reason) == ([end], "stop")


def test_the_oldest_turns_are_left_out() -> None:
    model = with_template()
    said = [TALK[0]]
    for turn in range(30):
        said += [
            {"role": "user", "content": f"q{turn} " + "x" * 20},
            {"role": "assistant", "content": "y" * 10},
        ]
    said.append({"role": "user", "content": "last"})
    kept, dropped = fit(model, said)
    assert dropped and dropped % 2 == 0 and len(kept) + dropped == len(said)
    assert kept[0] == said[0] and kept[1:] == said[1 + dropped :]
    assert len(prompt(model, kept)) <= 300 < len(prompt(model, [said[0], *said[dropped - 1 :]]))
    assert fit(model, TALK) == (TALK, 0)
    with pytest.raises(DaybreakError, match="400"):
        fit(model, [{"role": "user", "content": "x" * 400}])
    long = [{"role": "user", "content": "x" * 350}]
    assert fit(model, long) == (long, 0)


def test_a_model_without_a_tokenizer_is_named() -> None:
    with pytest.raises(DaybreakError, match="no tokenizer"):
        daybreak.create("gpt2", vocabulary=9, layers=1, width=8, heads=1).chat(HELLO)


# The command ---------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = with_template()
    with torch.no_grad():
        letters = torch.zeros(260, dtype=torch.bool)
        letters[: 26 + 26 + 20] = True
        model.decoder.tokens.weight[~letters] *= 0.01
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    return str(path)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(["chat", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def expected(folder: str, messages: Any, **settings: Any) -> str:
    answer = daybreak.load(folder).chat(messages, **settings)
    "".join(answer)
    return answer.text


def test_one_message_is_answered(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = expected(folder, HELLO, max_new_tokens=6)
    status, out, err = called(capsys, folder, "-m", "Hello", "--max-new-tokens", "6")
    assert (status, out.strip(), err) == (0, text, "")
    status, out, _ = called(capsys, folder, "-m", "Q1", "--system", "S", "--json", "--max-new-tokens", "6")
    told = json.loads(out)
    assert told["message"] == {
        "role": "assistant",
        "content": expected(folder, TALK[:2], max_new_tokens=6),
    }
    assert told["prompt_tokens"] == prompt(daybreak.load(folder), TALK[:2])
    assert told["finish_reason"] in ("stop", "length") and len(told["tokens"]) <= 6


def test_a_piped_message_is_answered(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    status, out, _ = called(capsys, folder, "--max-new-tokens", "6")
    assert (status, out.strip()) == (0, expected(folder, HELLO, max_new_tokens=6))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    status, out, err = called(capsys, folder)
    assert (status, out) == (2, "") and "no message" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, lines: list[str | type[BaseException]]) -> None:
    """What somebody types; an exception is a key, and at the end comes Ctrl-D."""
    rest = iter(lines)

    def read(shown: str = "") -> str:
        line = next(rest, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", read)


def test_a_conversation(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = [tmp_path / f"{number}.json" for number in range(4)]
    typed(
        monkeypatch,
        [
            *("/system S", "Q1", "//Q2", f"/save {saved[0]}", f"/save {saved[0]}"),
            *("/undo", f"/save {saved[1]}", "", KeyboardInterrupt, "/nonsense", "/help"),
            *("/reset", f"/save {saved[2]}", "/system", f"/save {saved[3]}"),
        ],
    )
    status, out, err = called(capsys, folder, "--max-new-tokens", "5")
    assert status == 0
    first, second, third, last = (json.loads(file.read_text()) for file in saved)
    assert [message["content"] for message in first][:2] == ["S", "Q1"]
    assert first[2]["content"] == expected(folder, first[:2], max_new_tokens=5) in out
    assert first[3] == {"role": "user", "content": "/Q2"}
    assert first[4]["content"] == expected(folder, first[:4], max_new_tokens=5)
    assert (second, third, last) == (first[:3], first[:1], [])
    assert "exists already" in err and "no command '/nonsense'" in err and "/undo" in out


def test_an_interrupted_answer_is_kept_and_the_program_goes_on(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = Answer.__iter__
    turns = iter(["at once", "soon", ""])

    def interrupted(self: Answer) -> Iterator[str]:
        stops = next(turns)
        if stops == "at once":
            raise KeyboardInterrupt
        for piece in whole(self):
            yield piece
            if stops:
                raise KeyboardInterrupt

    monkeypatch.setattr(Answer, "__iter__", interrupted)
    typed(monkeypatch, ["Q0", "Q1", "Q2", f"/save {tmp_path / 'a'}"])
    status, _, err = called(capsys, folder, "--max-new-tokens", "9")
    said = json.loads((tmp_path / "a").read_text())
    assert status == 0 and err.count("stopped") == 2
    assert [message["content"] for message in said[::2]] == ["Q1", "Q2"]
    assert len(said[1]["content"]) == 1 < len(said[3]["content"])


def test_what_does_not_fit_is_told(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, ["x" * 200, "y" * 200, "z" * 500, "short"])
    status, _, err = called(capsys, folder, "--max-new-tokens", "5")
    assert status == 0
    assert "the first 2 messages are left out" in err and "shorten it" in err


def test_base_models_are_said_to_be_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("gpt2").save(tmp_path)
    status, _, err = called(capsys, str(tmp_path), "-m", "Hello", "--max-new-tokens", "2")
    assert status == 0 and "no chat template" in err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["-m", "hello", "--temperature", "-1"], "temperature is -1.0"),
        (["-m", "caf\udce9"], "not UTF-8"),
        (["-m", "hello", "--n", "2"], "--n"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = called(capsys, "no/model-anywhere", *flags)
    assert (status, out) == (2, "") and named in err


def test_a_template_that_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_template(template="{{ raise_exception('nobody speaks') }}").save(tmp_path)
    status, out, err = called(capsys, str(tmp_path), "-m", "Hello")
    assert (status, out) == (2, "") and "nobody speaks" in err


def test_in_a_terminal(folder: str) -> None:
    """A pseudo-terminal: one question, then Ctrl-D."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "daybreak.cli.main", "chat", folder, "--max-new-tokens", "5"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, b"Hello\n\x04")
    out, _ = done.communicate(timeout=60)
    os.close(ours)
    assert done.returncode == 0 and expected(folder, HELLO, max_new_tokens=5) in out


def test_the_plain_format_is_the_usual_one() -> None:
    assert sum(families.by_name(name).chat is PLAIN for name in families.NAMES) == len(families.NAMES) - 1


def test_ratings_are_kept_for_a_reward_model(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ratings.jsonl"
    lines = [
        "/rate 1",
        "Q1",
        "/rate x",
        "/rate nan",
        "/rate -",
        "/retry",
        "/rate 2",
        f"/save {tmp_path / 'said'}",
    ]
    typed(monkeypatch, [*lines, "Q2", "Q3", "/retry", "/rate +"])
    options = ("--max-new-tokens", "5", "--temperature", "1", "--seed", "3", "--ratings", str(file))
    status, _, err = called(capsys, folder, *options)
    assert status == 0
    assert err.count("error:") == 3 and "no answer yet" in err and "finite" in err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["ratings"] for row in rows] == [[-1, 2], [None, 1]]  # Q2 was not rated
    status, _, err = called(capsys, folder, "--message", "Q1", "--ratings", str(file))
    assert status == 2 and "one message is none; leave one out" in err
    said = json.loads((tmp_path / "said").read_text())
    assert rows[0]["messages"] == said[:1] and rows[0]["answers"][1] == said[1]["content"]
    assert rows[0]["answers"][0] != rows[0]["answers"][1] and rows[0]["model"] == folder
    assert [message["content"] for message in rows[1]["messages"][::2]] == ["Q1", "Q2", "Q3"]
    (ranking,) = read_rankings(file)
    assert ranking.values == (-1.0, 2.0) and uncompared(file) == 1


def test_an_interrupted_retry_keeps_the_answer_before(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = Answer.__iter__
    turns = iter([False, True])

    def interrupted(self: Answer) -> Iterator[str]:
        if next(turns):
            raise KeyboardInterrupt
        yield from whole(self)

    monkeypatch.setattr(Answer, "__iter__", interrupted)
    typed(monkeypatch, ["Q1", f"/save {tmp_path / 'a'}", "/retry", f"/save {tmp_path / 'b'}"])
    status, _, err = called(capsys, folder, "--max-new-tokens", "5")
    assert status == 0 and "stopped" in err
    assert json.loads((tmp_path / "a").read_text()) == json.loads((tmp_path / "b").read_text())


def test_ratings_need_a_file(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, ["Q1", "/rate +", "/retry"])
    status, _, err = called(capsys, folder, "--max-new-tokens", "5", "--temperature", "0")
    assert status == 0 and "--ratings FILE" in err and "--temperature above 0" in err
