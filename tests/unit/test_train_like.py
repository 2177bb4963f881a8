"""Tokenizers learned as the families learned theirs: their layout, their cuts, and what reads them."""

from __future__ import annotations

import functools
import json
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from daybreak import families
from daybreak.errors import DaybreakError
from daybreak.text.piece_model import PieceModel
from daybreak.text.tokenizer import Tokenizer
from daybreak.text.train_tokenizer import train_like

TEXTS = [
    Path(json.__file__).read_text(),
    "the quick brown fox jumps over the lazy dog; it isn't lazy, we're told. 1234 5678 90\n\n\n" * 3,
    "北京故宫是中国现存最大的古代宫殿建筑群，你好，世界！naïve café über नमस्ते दुनिया। مرحبا، كيف حالك؟\n" * 3,
]
VOCABULARIES = {"gpt2": 700, "gpt_neox": 700, "bloom": 700, "opt": 700, "gpt": 500, "glm": 700}
NAMES = tuple(VOCABULARIES)
LOSSLESS = ("gpt2", "bloom", "opt", "glm")
SPECIAL = ["<|mark|>"]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60) | st.lists(
    st.sampled_from([*" \t\n.,!?()|[]…。、।۔،'", "  ", "the", " fox", "isn't", "12", "é", "é", "北京", " a"]),
    max_size=30,
).map("".join)


@functools.cache
def trained(name: str) -> Tokenizer:
    design = families.by_name(name).tokenizer
    assert design is not None
    return train_like(design, TEXTS, VOCABULARIES[name], SPECIAL)


@functools.cache
def folder(name: str) -> Path:
    place = Path(_PLACE.name) / name
    trained(name).save(place)
    return place


_PLACE = tempfile.TemporaryDirectory()


@functools.cache
def reference(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(name), local_files_only=True)


def backend(name: str) -> Any:
    from tokenizers import Tokenizer as Library

    return Library.from_file(str(folder(name) / "tokenizer.json"))


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_is_as_large_as_asked_for(name: str) -> None:
    tokenizer = trained(name)
    assert tokenizer.vocabulary == VOCABULARIES[name]
    assert tokenizer.specials[SPECIAL[0]] == VOCABULARIES[name] - 1
    assert tokenizer.eos_id is not None, "documents need an end"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_back_from_its_files(name: str) -> None:
    again = Tokenizer.load(folder(name))
    assert again is not None
    ours = trained(name)
    for text in (*TEXTS, "a <|endoftext|> b<|mark|> c </s> d [MASK]e"):
        assert again.encode(text) == ours.encode(text)
        assert again.encode(text, special=False) == ours.encode(text, special=False)
    for role in ("bos_id", "eos_id", "pad_id", "adds_bos"):
        assert getattr(again, role) == getattr(ours, role)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(text=TEXT)
def test_transformers_reads_the_same_ids(name: str, text: str) -> None:
    for whole in (text, f"{text}<|mark|>{text}<|endoftext|>"):
        assert reference(name)(whole)["input_ids"] == trained(name).encode(whole)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_knows_the_same_special_tokens(name: str) -> None:
    ours, theirs = trained(name), reference(name)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert theirs.pad_token_id == ours.pad_id
    assert len(theirs) == ours.vocabulary


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=100)
@given(text=TEXT)
def test_every_text_comes_back(name: str, text: str) -> None:
    tokenizer = trained(name)
    assert tokenizer.decode(tokenizer.encode(text, special=False, bos=False), skip_special=False) == text


@settings(max_examples=100)
@given(text=TEXT)
@example(text="cafe\u0301")
def test_a_tokenizer_that_composes_letters_brings_composed_ones_back(text: str) -> None:
    tokenizer = trained("gpt_neox")
    back = tokenizer.decode(tokenizer.encode(text, special=False))
    assert back == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt2", "GPT2Tokenizer"), ("gpt_neox", "GPTNeoXTokenizer"), ("gpt", "OpenAIGPTTokenizer")],
)
@settings(max_examples=100)
@given(text=TEXT)
@example(text="cafe\u0301 u\u0308ber")
def test_texts_are_cut_as_the_published_classes_cut_them(name: str, kind: str, text: str) -> None:
    """transformers' class of the family, with our vocabulary and merges, and its own normaliser and cuts."""
    theirs = _published(name, kind)
    ours = trained(name)
    if name == "gpt_neox":  # the published class knows the runs of spaces from its file only
        text = re.sub("  +", " ", text)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, special=False)


@functools.cache
def _published(name: str, kind: str) -> Any:
    import transformers

    model = json.loads(trained(name).files["tokenizer.json"])["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return getattr(transformers, kind)(vocab=model["vocab"], merges=merges)


WHITE = " \t\n\r\f\v\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
BLOOM_WORDS = re.compile(f" ?[^{WHITE}()|.,!?…。，、।۔،]+")
"""The published split without a class inside the class; Python's white space would have more signs."""


@settings(max_examples=200)
@given(text=TEXT)
def test_the_split_at_signs_of_several_scripts(text: str) -> None:
    from tokenizers.decoders import ByteLevel

    parts, place = [], 0
    for match in BLOOM_WORDS.finditer(text):
        parts += [text[place : match.start()], match[0]]
        place = match.end()
    parts = [part for part in [*parts, text[place:]] if part]
    found = backend("bloom").pre_tokenizer.pre_tokenize_str(text)
    decoder = ByteLevel()
    assert [decoder.decode([piece]) for piece, _ in found] == parts


def test_ids_stand_where_the_published_ones_stand() -> None:
    second, ours = trained("gpt2"), backend("gpt2")
    assert [second.decode([number]) for number in (0, 93, 220 - 32)] == ["!", "~", "\x00"]
    assert ours.token_to_id("<|endoftext|>") == 700 - 2
    neox = trained("gpt_neox")
    assert (neox.eos_id, neox.pad_id) == (0, 1)
    runs = {text: number for text, number in neox.added.items() if text.isspace()}
    assert [len(text) for text in sorted(runs, key=lambda text: runs[text])] == list(range(24, 1, -1))
    assert not set(runs) & set(neox.specials), "runs of spaces are text"
    assert max(runs.values()) == 700 - 2
    assert neox.encode("a" + " " * 24 + "b")[1] == min(runs.values())
    assert [trained("bloom").specials[text] for text in ("<unk>", "<s>", "</s>", "<pad>")] == [0, 1, 2, 3]
    assert trained("opt").encode("x")[0] == 2
    assert trained("gpt").specials["<unk>"] == 0


def test_words_are_lower_cased_and_their_ends_marked() -> None:
    tokenizer = trained("gpt")
    assert tokenizer.encode("The Quick FOX") == tokenizer.encode("the quick fox")
    vocabulary = backend("gpt").get_vocab()
    assert "the</w>" in vocabulary
    assert tokenizer.decode(tokenizer.encode("Naïve  fox.")) == "naive fox ."


@settings(max_examples=100)
@given(text=TEXT)
@example(text="a <unk> b <0x0A> c")
def test_sentencepiece_cuts_the_same_pieces(text: str) -> None:
    assert _pieces().encode(text) == trained("glm").encode(text, special=False)


@functools.cache
def _pieces() -> Any:
    return SentencePieceProcessor(model_proto=trained("glm").files["cog-pretrain.model"])


def test_the_sentencepiece_model_is_enough(tmp_path: Path) -> None:
    tokenizer = trained("glm")
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    alone = Tokenizer.load(tmp_path)
    assert alone is not None
    for text in (*TEXTS, "a fox[gMASK]<|startofpiece|>the dog<|endofpiece|>"):
        assert alone.encode(text) == tokenizer.encode(text)
    assert alone.specials == tokenizer.specials
    assert (alone.eos_id, alone.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert list(tokenizer.specials)[:2] == ["<|endoftext|>", "[SEP]"]
    assert (
        len(PieceModel.read(tokenizer.files["cog-pretrain.model"]).texts)
        == tokenizer.specials["<|endoftext|>"]
    )


def test_the_blanks_of_the_family_are_known() -> None:
    spelled = families.by_name("glm").blank_tokens
    assert all(trained("glm").special_id(text) is not None for text in spelled.values())


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_read_once_and_lazily(name: str) -> None:
    design = families.by_name(name).tokenizer
    assert design is not None
    given_: list[int] = []

    def texts() -> Any:
        for number, text in enumerate(TEXTS):
            given_.append(number)
            yield text

    again = train_like(design, texts(), VOCABULARIES[name], SPECIAL)
    assert given_ == list(range(len(TEXTS)))
    if name != "gpt":  # there the library numbers letters at the ends of words by a hash
        assert again.files == trained(name).files


def test_half_a_character_is_replaced() -> None:
    design = families.by_name("gpt2").tokenizer
    assert design is not None
    assert train_like(design, ["\ud800 lonely"], 260).vocabulary == 260


@pytest.mark.parametrize(
    ("name", "vocabulary", "marks", "words"),
    [
        ("gpt2", 256, [], "of 256 cannot hold all bytes and its special tokens; take at least 257"),
        ("bloom", 259, [], "take at least 260"),
        ("gpt_neox", 270, [], "take at least 281"),
        ("gpt", 2, [], "take at least 3"),
        ("gpt", 60, [], "of 60 cannot hold the letters of the texts; take at least"),
        ("glm", 10, [], "take at least 11"),
        ("glm", 300, [], "and the characters of the texts; take at least 3"),
        ("gpt2", 100_000, [], "not 100000; ask for fewer"),
        ("gpt", 100_000, [], "not 100000; ask for fewer"),
        ("glm", 100_000, [], "not 100000; ask for fewer"),
        ("gpt2", 300, ["<a>", "<a>"], "'<a>' is there already"),
        ("gpt2", 300, ["<|endoftext|>"], "is there already"),
        ("gpt2", 300, [""], "has no text"),
        ("gpt2", 300, ["e"], "is a piece of the texts"),
    ],
)
def test_what_cannot_be_is_refused(name: str, vocabulary: int, marks: list[str], words: str) -> None:
    design = families.by_name(name).tokenizer
    assert design is not None
    with pytest.raises(DaybreakError, match=words):
        train_like(design, TEXTS, vocabulary, marks)


def test_the_least_that_is_named_is_enough() -> None:
    design = families.by_name("glm").tokenizer
    assert design is not None
    with pytest.raises(DaybreakError) as refused:
        train_like(design, TEXTS, 300)
    least = int(str(refused.value).split()[-1])
    assert train_like(design, TEXTS, least).vocabulary == least
    with pytest.raises(DaybreakError):
        train_like(design, TEXTS, least - 1)


@pytest.mark.parametrize("family", [page for page in families.everyone() if page.tokenizer is not None])
def test_pages_count_what_they_name(family: Any) -> None:
    """The published size holds the special tokens, the runs, and 256 bytes where it is made of bytes."""
    design = family.tokenizer
    fixed = len({*design.first, *design.last}) + max(design.longest_run - 1, 0)
    assert fixed == len(design.first) + len(design.last) + max(design.longest_run - 1, 0)
    roles = {role for role in (design.bos, design.eos, design.pad) if role is not None}
    assert roles <= {*design.first, *design.last}
    published = {"gpt2": 50000 + 256 + 1, "gpt_neox": 50254 + 23, "bloom": 250680, "glm": 50000 + 10}
    assert design.vocabulary == published.get(family.name, design.vocabulary)


def test_nothing_is_left_on_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    design = families.by_name("glm").tokenizer
    assert design is not None
    train_like(design, TEXTS, VOCABULARIES["glm"])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
