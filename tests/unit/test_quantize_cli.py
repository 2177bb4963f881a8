"""`daybreak quantize` as people call it, and the figures of what quantising costs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import daybreak
from daybreak.cli import plain
from daybreak.cli.main import run
from daybreak.compare.redraw import redraw
from daybreak.engine.damage import Damage, damage
from daybreak.text.train_tokenizer import train_tokenizer
from tests.unit.test_checkpoint_roundtrip import SHAPES

TEXT = Path(__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = daybreak.create("gpt_neox", **{**SHAPES["gpt_neox"], "vocabulary": 300})
    redraw(model.decoder, 1)
    model.tokenizer = train_tokenizer([TEXT], 300)
    folder = tmp_path_factory.mktemp("whole")
    model.save(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text"


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = run(["quantize", *map(str, words)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_a_line_for_people(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = tmp_path / "few"
    status, out, err = called(capsys, source, "--out", few)
    size = plain.size((few / "model.safetensors").stat().st_size)
    assert (status, err) == (0, "")
    assert out == f"{few}: GPT-NeoX and Pythia, 8 bits, a scale for each row, {size}\n"
    status, out, _ = called(capsys, source, "--out", tmp_path / "four", "--bits", 4)
    assert status == 0 and "4 bits, a scale for 32 inputs" in out
    assert called(capsys, source, "--out", tmp_path / "row", "--bits", 4, "--group", 0)[1].count("each row")


def test_json(source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--bits", 4, "--group", 64, "--zeros", "--text", text, "--tokens", 200, "--json")
    status, out, err = called(capsys, source, "--out", tmp_path / "few", *options)
    assert (status, err) == (0, "")
    told = json.loads(out)
    size = (tmp_path / "few" / "model.safetensors").stat().st_size
    fields = {"folder": str(tmp_path / "few"), "bits": 4, "group": 64, "zeros": True, "bytes": size}
    assert {name: told[name] for name in fields} == fields
    cost = told["damage"]
    assert cost["tokens"] == 200 - math.ceil(200 / 24)
    assert cost["increase"] == pytest.approx(math.exp(cost["after"] - cost["before"]) - 1)
    assert cost["kl"] > 0 and 0 < cost["agreement"] <= 1


def test_what_it_costs_is_told(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = called(capsys, source, "--out", tmp_path / "few", "--text", text)
    found = damage(
        daybreak.load(source).decoder,
        daybreak.load(tmp_path / "few").decoder,
        daybreak.load(source).tokenizer.encode(TEXT, special=False)[:8192],  # type: ignore[union-attr]
    )
    before, after = found.perplexities
    last = out.splitlines()[-1]
    assert status == 0
    assert last.startswith(f"on {found.tokens:,} tokens: perplexity {before:.4g} -> {after:.4g} (")
    assert f"KL {found.kl:.2g} nats, the same first choice {found.agreement:.1%}" in last


def test_several_files(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys, source, "--out", tmp_path / "few", "--shard-size", "20KB")[0] == 0
    assert len(list((tmp_path / "few").glob("model-*-of-*.safetensors"))) > 1
    daybreak.load(tmp_path / "few")


def test_the_bar_is_for_terminals(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    status, out, err = called(capsys, source, "--out", tmp_path / "few")
    assert status == 0 and len(out.splitlines()) == 1
    assert "56.1/56.1" in err or "/s" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "5"], "weights of 5 bits are not supported; say 8 or 4"),
        (["--bits", "many"], "'--bits': Input should be a valid integer"),
        (["--group", "48"], "groups of 48 inputs are not supported; say 32, 64 or 128, or none"),
        (["--group", "-32"], "groups of -32 inputs"),
        (["--tokens", "1"], "'--tokens': Input should be greater than or equal to 2"),
        (["--text", "no-such-file"], "no-such-file cannot be read"),
        (["--text", "{folder}/empty"], "fewer than two tokens"),
        (["--text", "{folder}/bytes"], "bytes cannot be read: 'utf-8' codec"),
        (["--shard-size", "large"], "shard size 'large' is not understood"),
        (["--with-love"], "No such option: --with-love"),
    ],
)
def test_wrong_values_are_one_line(
    options: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    options = [word.format(folder=tmp_path) for word in options]
    status, out, err = called(capsys, source, "--out", tmp_path / "few", *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "few").exists()


def test_wrong_folders_are_one_line(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    daybreak.create("gpt_neox", **SHAPES["gpt_neox"]).save(bare)
    assert called(capsys, bare, "--out", tmp_path / "few")[0] == 0
    cases = [
        ((source, "--out", source), "not an empty folder"),
        ((tmp_path / "none", "--out", tmp_path / "new"), "none"),
        ((bare, "--out", tmp_path / "new", "--text", text), "has no tokenizer"),
        ((tmp_path / "few", "--out", tmp_path / "new"), "take the checkpoint that it was made from"),
    ]
    for words, message in cases:
        status, out, err = called(capsys, *words)
        assert (status, out) == (2, "") and err.count("\n") == 1 and message in err, words
        assert not (tmp_path / "new").exists()


def test_the_other_commands_take_the_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = str(tmp_path / "few")
    assert called(capsys, source, "--out", few)[0] == 0
    assert run(["generate", few, "def", "-m", "4", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert run(["generate", str(source), "def", "-m", "4", "--json", "--bits", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == written["tokens"]
    assert run(["describe", few]) == 0
    assert "GPT-NeoX" in capsys.readouterr().out
    for words, message in (
        (["convert", few, f"{few}-2"], "made from"),
        (["verify", few], "no reference reads"),
    ):
        assert run(words) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert run(["generate", few, "def", "--bits", "4"]) == 2
    assert "has weights of 8 bits, not 4" in capsys.readouterr().err


def plainly(source: Path, bits: int, tokens: list[int], window: int) -> Damage:
    """The same figures by loops over numbers of Python's own."""
    before = after = kl = 0.0
    count = agreed = 0
    one, other = daybreak.load(source), daybreak.load(source, bits=bits)
    for first in range(0, len(tokens), window):
        part = tokens[first : first + window]
        rows = [model.logits(torch.tensor([part]))[0].double().tolist() for model in (one, other)]
        for place in range(len(part) - 1):
            chances = []
            for row in (rows[0][place], rows[1][place]):
                total = sum(math.exp(value) for value in row)
                chances.append([math.exp(value) / total for value in row])
            p, q = chances
            before -= math.log(p[part[place + 1]])
            after -= math.log(q[part[place + 1]])
            kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            agreed += p.index(max(p)) == q.index(max(q))
            count += 1
    return Damage(count, before / count, after / count, kl / count, agreed / count)


@pytest.mark.parametrize("length", [2, 24, 25, 47, 70])
def test_damage_is_what_loops_find(length: int, source: Path) -> None:
    """Stretches of the context's 24 tokens; one token alone at the end predicts nothing."""
    tokens = torch.randint(300, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    found = damage(daybreak.load(source).decoder, daybreak.load(source, bits=4).decoder, tokens)
    expected = plainly(source, 4, tokens, 24)
    assert found.tokens == expected.tokens and found.agreement == pytest.approx(expected.agreement)
    for name in ("before", "after", "kl", "increase"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-7), name
    assert found.perplexities == pytest.approx((math.exp(expected.before), math.exp(expected.after)))
    assert expected.kl > 1e-4


def test_a_model_costs_nothing_beside_itself(source: Path) -> None:
    decoder = daybreak.load(source).decoder
    found = damage(decoder, decoder, list(range(100)))
    assert (found.kl, found.increase, found.agreement) == (0.0, 0.0, 1.0)
