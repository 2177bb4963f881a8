"""Byte pairs and word pieces with the special tokens of blank infilling; special tokens in others' text."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import daybreak
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer
from tests.unit.test_tokenizer import KINDS, STRINGS, byte_level, gpt2_files, neox_files

ORDER = [
    *("<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]"),
    "[dBLOCK]",
]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cafe",
    "café",
    "un",
    "##aff",
    "##able",
    "Un",
    "!",
    "?",
]
WORDS += [f"{before}{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCD中文" for before in ("", "##")]


def loaded(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer is not None
    return tokenizer


def pairs(folder: Path, **config: Any) -> Path:
    """As glm-2b's and glm-10b's: GPT-2's files and tokens behind them."""
    byte_level(folder, "<|endoftext|>", **config)
    count = len(json.loads((folder / "vocab.json").read_text()))
    added = {text: count + place for place, text in enumerate(ORDER)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def words(folder: Path, **config: Any) -> Path:
    """As glm-base's and glm-large's: BERT's word pieces and tokens behind them."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    added = {text: len(WORDS) + place for place, text in enumerate(ORDER[:2])}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_byte_pairs_with_tokens_behind_them(tmp_path: Path) -> None:
    tokenizer = loaded(pairs(tmp_path / "pairs", eos_token="<|endoftext|>", pad_token="<|endoftext|>"))
    first = tokenizer.vocabulary - len(ORDER)
    assert [tokenizer.special_id(text) for text in ORDER] == list(range(first, first + len(ORDER)))
    assert tokenizer.eos_id == tokenizer.pad_id == 0
    text = "Ng is a professor at [MASK] (formerly), 数据\n\t[gMASK]"
    masks = [tokenizer.special_id("[MASK]"), tokenizer.special_id("[gMASK]")]
    ids = [
        *tokenizer.encode("Ng is a professor at"),
        masks[0],
        *tokenizer.encode(" (formerly), 数据"),
        masks[1],
    ]
    assert tokenizer.encode(text) == ids  # white space on the left of a blank goes, on its right it stays
    assert tokenizer.decode(ids, skip_special=False) == "Ng is a professor at[MASK] (formerly), 数据[gMASK]"
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_what_the_files_say_of_a_token_holds(tmp_path: Path) -> None:
    mask = {"content": "[MASK]", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    more = ["<|startofpiece|>", "[gMASK]"]
    folder = pairs(tmp_path / "pairs", mask_token=mask, additional_special_tokens=more)
    tokenizer = loaded(folder)
    mask_id = tokenizer.special_id("[MASK]")
    assert tokenizer.encode("a [MASK] b") == [*tokenizer.encode("a "), mask_id, *tokenizer.encode("b")]


@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_every_text_comes_back_from_byte_pairs(byte_pairs: Tokenizer, text: str) -> None:
    assert byte_pairs.decode(byte_pairs.encode(text, special=False)) == text


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return loaded(pairs(tmp_path_factory.mktemp("pairs") / "pairs"))


@pytest.mark.parametrize(
    "config", [{}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}]
)
def test_word_pieces_are_those_of_transformers(config: dict[str, bool], tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = words(tmp_path / "words", **config)
    ours, theirs = loaded(folder), BertTokenizer.from_pretrained(folder, **config)
    for text in (*STRINGS, "Unaffable CAFÉ, café!", "中文abc?!", "a[MASK] b", "the [SEP]", "x" * 101):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_word_pieces_with_tokens_behind_them(tmp_path: Path) -> None:
    tokenizer = loaded(words(tmp_path / "words"))
    count = len(WORDS)
    assert [tokenizer.special_id(text) for text in ORDER[:4]] == [count, count + 1, 2, 4]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, 0)
    assert tokenizer.special_id("[gMASK]") is None
    ids = tokenizer.encode("The Café [MASK]!<|startofpiece|>")
    assert tokenizer.decode(ids) == "the cafe !"  # what this vocabulary does not keep
    assert tokenizer.decode(tokenizer.encode("unaffable")) == "unaffable"
    assert 4 not in tokenizer.encode("[MASK]", special=False)
    tokenizer.save(tmp_path / "to")
    assert (tmp_path / "to" / "vocab.txt").read_bytes() == (tmp_path / "words" / "vocab.txt").read_bytes()


def test_word_pieces_without_one_for_unknown_words(tmp_path: Path) -> None:
    folder = words(tmp_path / "words")
    (folder / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DaybreakError, match=r"vocab\.txt lacks '\[UNK\]'"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_others_text_are_text(kind: str, tmp_path: Path) -> None:
    tokenizer = loaded(KINDS[kind](tmp_path / kind))
    special = {"<|endoftext|>", "<|padding|>", "</s>", "<pad>", "<s>", "<unk>"}
    known = {text: tokenizer.special_id(text) for text in special if tokenizer.special_id(text) is not None}
    assert known
    for text, number in known.items():
        assert number in tokenizer.encode(f"a{text}b")
        plain = tokenizer.encode(f"a{text}b", bos=False, special=False)
        assert kind == "gpt" or number not in plain  # the first GPT has this token for what it cannot spell
        if kind != "gpt":
            shown = tokenizer.decode(plain)
            assert shown == f"a{text}b"
    for text in ("def f(x):\n    return  x", "数据"):
        assert tokenizer.encode(text, special=False) == tokenizer.encode(text)


def test_both_readings_at_once_from_many_threads(tmp_path: Path) -> None:
    tokenizer = loaded(neox_files(tmp_path / "neox"))
    text = "a<|endoftext|>b " * 50
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(tokenizer.encode, text, special=bool(turn % 2)) for turn in range(200)]
    counts = [job.result().count(0) for job in jobs]
    assert counts == [0, 50] * 100


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path: Path) -> None:
    shape = {"context": 16, "layers": 1, "width": 12, "heads": 2, "inner": 48}
    tokenizer = loaded(gpt2_files(tmp_path / "tokenizer"))
    for rows in (tokenizer.vocabulary, tokenizer.vocabulary + 12):  # a padded table is normal
        model = daybreak.create("gpt2", vocabulary=rows, **shape)
        model.tokenizer = tokenizer
        model.save(tmp_path / "model")
        assert daybreak.load(tmp_path / "model").tokenizer is not None
    (tmp_path / "model" / "added_tokens.json").write_text(json.dumps({"<a>": tokenizer.vocabulary}))
    assert daybreak.load(tmp_path / "model").tokenizer is not None
    model = daybreak.create("gpt2", vocabulary=tokenizer.vocabulary - 1, **shape)
    model.tokenizer = tokenizer
    model.save(tmp_path / "less")
    with pytest.raises(
        DaybreakError,
        match=f"ids up to {tokenizer.vocabulary - 1}, but the model has {tokenizer.vocabulary - 1} rows",
    ):
        daybreak.load(tmp_path / "less")


def test_padding_that_was_added_to_the_tokenizer_alone(tmp_path: Path) -> None:
    """As many fine-tunes did: it loads, and only a text that has the token is refused."""
    tokenizer = loaded(gpt2_files(tmp_path / "tokenizer"))
    rows = tokenizer.vocabulary
    model = daybreak.create("gpt2", vocabulary=rows, context=16, layers=1, width=12, heads=2, inner=48)
    model.tokenizer = tokenizer
    model.save(tmp_path / "model")
    (tmp_path / "model" / "added_tokens.json").write_text(json.dumps({"[PAD]": rows}))
    (tmp_path / "model" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    found = daybreak.load(tmp_path / "model")
    assert found.tokenizer is not None and found.tokenizer.pad_id == rows
    assert found.generate("a", max_new_tokens=3, ignore_eos=True)[0].tokens
    with pytest.raises(DaybreakError, match=f"token id {rows}"):
        found.generate("a[PAD]")
