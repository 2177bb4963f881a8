"""`daybreak generate` as people call it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import daybreak
from daybreak import field_docs
from daybreak.cli.main import run
from daybreak.engine.generate import Stream
from daybreak.engine.settings import Sampling
from daybreak.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with a byte-level tokenizer, as people have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    model = daybreak.create("gpt2", vocabulary=256, context=64, layers=1, width=32, heads=2)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
        # It writes letters only, so that its text survives any terminal.
        letters = torch.tensor([letter.isascii() and letter.isalpha() for letter in alphabet])
        model.decoder.tokens.weight[~letters] *= 0.01
    model.tokenizer = Tokenizer(backend)
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    return str(path)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(["generate", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_one_prompt_is_written_as_it_comes(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = daybreak.load(folder).generate("Once ", max_new_tokens=9)[0].text
    status, out, err = called(capsys, folder, "Once ", "-m", "9")
    assert (status, out, err) == (0, expected + "\n", "")
    status, out, _ = called(capsys, folder, "Once ", "-m", "9", "--temperature", "0")
    assert out == expected + "\n"


def test_several_results_carry_titles(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = called(capsys, folder, "one", "two", "--n", "2", "--seed", "3", "-m", "5")
    results = daybreak.load(folder).generate(["one", "two"], n=2, seed=3, max_new_tokens=5)
    names = ["1, sample 1: one", "1, sample 2: one", "2, sample 1: two", "2, sample 2: two"]
    pairs = zip(names, results, strict=True)
    assert status == 0
    assert out == "".join(f"[prompt {name}]\n{result.text}\n\n" for name, result in pairs)


def test_json_has_one_object_per_line(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--json", "-m", "3", "--logprobs", "2", "--prompt-logprobs", "0"]
    status, out, _ = called(capsys, folder, "one", "twenty", *flags)
    objects: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [entry["prompt"] for entry in objects] == ["one", "twenty"]
    for entry in objects:
        assert entry["finish_reason"] == "length" and len(entry["tokens"]) == 3
        assert [place["token"] for place in entry["logprobs"]] == entry["tokens"]
        assert all(len(place["top"]) == 2 for place in entry["logprobs"])
        assert entry["prompt_logprobs"][0] is None
        assert len(entry["prompt_logprobs"]) == len(entry["prompt_tokens"])


def test_prompts_from_standard_input(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, expected in (([], ["one\ntwo"]), (["--lines"], ["one", "two"])):
        monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
        _, out, _ = called(capsys, folder, "-", "--json", "-m", "1", *flags)
        assert [json.loads(line)["prompt"] for line in out.splitlines()] == expected


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--n", "2", "--temperature", "0"], "all samples are the same"),
        (["--logprobs", "1"], "add --json"),
        (["--top-k", "many"], "--top-k"),
        (["--device", "foo"], "device is 'foo'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is named before a model is looked for."""
    status, out, err = called(capsys, "no/model-anywhere", "text", *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_what_is_written_stays_when_interrupted(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Stream) -> Any:
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "__iter__", interrupted)
    status, out, err = called(capsys, folder, "text")
    assert (status, out, err) == (130, "so far\n", "")


def test_the_file_s_defaults_can_be_left_aside(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    defaults = Path(folder, "generation_config.json")
    defaults.write_text('{"num_beams": 4}')
    try:
        status, _, err = called(capsys, folder, "text", "-m", "2")
        assert status == 2 and "num_beams" in err and "--no-defaults" in err
        assert called(capsys, folder, "text", "-m", "2", "--no-defaults")[0] == 0
    finally:
        defaults.unlink()


def test_every_setting_has_a_sentence_and_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    docs = field_docs.field_docs(Sampling)
    assert list(docs) == list(Sampling.__dataclass_fields__)
    _, out, _ = called(capsys, "--help")
    for name, sentence in docs.items():
        assert f"--{name.replace('_', '-').removesuffix('s')}" in out
        assert sentence.split()[0] in out


def test_a_prompt_that_is_no_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "anything", "caf\udce9"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_draft_leaves_the_text_as_it_is(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["-t", "0"], ["-t", "1", "--seed", "5", "-n", "3"]):
        plain = called(capsys, folder, "one two", "-m", "30", *flags)
        assert plain[0] == 0
        assert called(capsys, folder, "one two", "-m", "30", "--draft", folder, *flags) == plain


def test_keys_and_values_may_have_fewer_bits(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = called(capsys, folder, "one", "-m", "5", "--cache-dtype", "int8")
    assert (status, len(out), err) == (0, 6, "")
    status, out, err = called(capsys, folder, "one", "--cache-dtype", "int3")
    assert (status, out) == (2, "")
    assert "int3" in err and "int8" in err and err.count("\n") == 1
