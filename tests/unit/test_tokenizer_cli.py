"""`daybreak tokenizer train` and `compare`: files in, folder out, all or nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from tokenizers import Tokenizer as Library

from daybreak.cli.main import run
from daybreak.data import learn_tokenizer as logic
from daybreak.data.texts import CHARACTERS, Texts
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer

WORDS = "the quick brown fox jumps over the lazy dog, isn't it?\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(WORDS * 20, encoding="utf-8")
    lines = [json.dumps({"text": f"Zeile {number}: Füchse und Hunde"}) for number in range(20)]
    packed = zstandard.ZstdCompressor().compress("\n".join(lines).encode())
    (folder / "deep" / "b.jsonl.zst").write_bytes(packed)
    (folder / "deep" / "c.txt.gz").write_bytes(gzip.compress(("le renard brun " * 50).encode()))
    return folder


def train(*words: str) -> int:
    return run(["tokenizer", "train", *words])


def test_texts_are_those_of_the_files(corpus: Path) -> None:
    seen: list[tuple[int, int]] = []
    ends: list[bool] = []
    texts = Texts([str(corpus)], progress=lambda *at: seen.append(at), at_end=lambda: ends.append(True))
    found = list(texts)
    assert found[0] == WORDS * 20
    assert found[1] == "Zeile 0: Füchse und Hunde"
    assert found[-1] == "le renard brun " * 50
    assert len(found) == texts.documents == 22
    assert texts.bytes == sum(len(text.encode()) for text in found) == seen[-1][0]
    assert all(done <= total for done, total in seen)
    assert ends == [True]
    assert list(Texts([str(corpus / "**" / "*.gz")])) == [found[-1]]


def test_a_large_file_is_read_in_parts(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    file.write_text("é" * (2 * CHARACTERS + 5), encoding="utf-8")
    assert len(list(Texts([str(file.rename(file.with_suffix(".rs")))], kind="text"))) == 3
    file.with_suffix(".rs").rename(file)
    texts = Texts([str(file)])
    assert [len(text) for text in texts] == [CHARACTERS, CHARACTERS, 5]
    assert texts.documents == 1


def test_what_cannot_be_read_is_named(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "bad.txt").write_bytes(b"fine\n\xff\xfe broken")
    (corpus / "bad.jsonl").write_text('{"text": "good"}\n{"text": 3}\n{no\n')
    whole = zstandard.ZstdCompressor().compress(bytes(range(65, 91)) * 9999)
    (corpus / "cut.txt.zst").write_bytes(whole[:-3])
    out = corpus.parent / "t"
    assert train(str(corpus), "--out", str(out), "--vocabulary", "300", "--like", "gpt2", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["damaged"] == 4
    named = [line for line in captured.err.splitlines() if line.startswith("left out: ")]
    assert len(named) == 4
    assert any("bad.jsonl:2" in line for line in named)
    assert any("bad.jsonl:3" in line for line in named)
    assert any("bad.txt" in line and "utf-8" in line for line in named)
    assert any("cut.txt.zst" in line for line in named)


def test_train_writes_a_folder_that_is_read(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = corpus.parent / "new" / "tok"
    words = ["--vocabulary", "340", "--like", "pythia-70m", "--special", "<|a|>", "--special", "<|b|>"]
    assert train(str(corpus), "--out", str(out), *words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["like"], told["vocabulary"], told["files"]) == ("gpt_neox", 340, 3)
    assert told["special"]["<|b|>"] == 339
    tokenizer = Tokenizer.load(out)
    assert tokenizer is not None
    assert tokenizer.vocabulary == 340
    assert tokenizer.encode("fox<|b|>")[-1] == 339
    assert Library.from_file(str(out / "tokenizer.json")).token_to_id("<|a|>") == 338
    assert [entry.name for entry in out.parent.iterdir()] == ["tok"]


def test_train_says_what_it_did(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = corpus.parent / "tok"
    out.mkdir()
    assert train(str(corpus / "a.txt"), "--out", str(out), "--like", "gpt2", "--vocabulary", "280") == 0
    assert capsys.readouterr().out == f"{out}: 280 tokens like GPT-2's, learned from 1.07 KiB in one file\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere", "--out", "x"], "there is nothing at"),
        (["{corpus}", "--out", "{corpus}"], "not empty"),
        (["{corpus}", "--out", "{corpus}/a.txt"], "not empty"),
        (["{corpus}", "--out", "x", "--like", "gpt4"], "no family 'gpt4'"),
        (["{corpus}", "--out", "x", "--like", "llama"], "is not published"),
        (["{corpus}", "--out", "x", "--vocabulary", "12"], "take at least"),
        (["{corpus}", "--out", "x"], "ask for fewer"),
        (["{corpus}", "--out", "x", "--key", "body", "--vocabulary", "9999"], "ask for fewer"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(
    words: list[str],
    reason: str,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = corpus.parent / "cwd"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert train(*(word.format(corpus=corpus) for word in words)) == 2
    assert reason in capsys.readouterr().err
    assert not list(empty.iterdir())


def test_a_folder_is_complete_or_not_there(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Tokenizer, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device", "tokenizer.json")

    monkeypatch.setattr(logic.Tokenizer, "save", fails)
    out = corpus.parent / "made" / "tok"
    with pytest.raises(OSError, match="No space left"):
        logic.learn_tokenizer(Texts([str(corpus)]), "gpt2", out, 280)
    assert not list(out.parent.iterdir())


def test_compare_measures_side_by_side(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = corpus / "a.txt"
    for name, like, size in (("small", "gpt2", "258"), ("large", "gpt2", "290"), ("lower", "gpt", "58")):
        out = str(corpus.parent / name)
        assert train(str(file), "--out", out, "--like", like, "--vocabulary", size) == 0
    capsys.readouterr()
    folders = [str(corpus.parent / name) for name in ("small", "large", "lower")]
    assert run(["tokenizer", "compare", *folders, "--text", str(file), "--json"]) == 0
    small, large, lower = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.load(folders[1])
    assert tokenizer is not None
    assert large["tokens"] == len(tokenizer.encode(WORDS * 20))
    assert large["bytes_per_token"] == pytest.approx(len(WORDS * 20) / large["tokens"])
    assert large["tokens"] < small["tokens"]
    assert (small["exact"], lower["exact"], small["texts"]) == (1, 0, 1)
    assert all(one["encode_speed"] > 0 and one["decode_speed"] > 0 for one in (small, large, lower))
    assert run(["tokenizer", "compare", *folders, "--text", str(file)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["entries", "tokens", "bytes/token", "exact"]
    assert table[1].split()[0] == "258"
    assert table[1].split()[-1].startswith(folders[0][:20])
    assert "0 of 1" in table[3]


def test_compare_measures_no_more_than_asked_for(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = corpus / "a.txt", str(corpus.parent / "t")
    assert train(str(file), "--out", out, "--like", "gpt2", "--vocabulary", "257") == 0
    capsys.readouterr()
    assert run(["tokenizer", "compare", out, "--text", str(file), "--megabytes", "0.0001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tokens"] == 100


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{corpus}", "--text", "{corpus}/a.txt"], "has no tokenizer"),
        (["no such name", "--text", "{corpus}/a.txt"], "no folder 'no such name'"),
        (["{tok}", "--text", "{empty}"], "no text to measure"),
        (["{tok}", "--text", "{corpus}/a.txt", "--megabytes", "0"], "--megabytes is 0"),
    ],
)
def test_what_cannot_be_compared_is_named(
    words: list[str], reason: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tok, empty = corpus.parent / "tok", corpus.parent / "empty.txt"
    empty.write_text("")
    assert train(str(corpus / "a.txt"), "--out", str(tok), "--like", "gpt2", "--vocabulary", "257") == 0
    places = {"corpus": corpus, "tok": tok, "empty": empty}
    assert run(["tokenizer", "compare", *(word.format(**places) for word in words)]) == 2
    assert reason in capsys.readouterr().err


def test_a_page_that_does_not_say_how_is_named() -> None:
    with pytest.raises(DaybreakError, match=r"Llama.* is not published; take gpt, gpt2"):
        logic.design_like("llama")
