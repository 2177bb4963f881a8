"""Pieces of text: never half a character, never part of a stop string, and together the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from daybreak.text.stream import REPLACEMENT, Detokenizer, StopStrings, TextStream


class Bytes:
    """Ids are bytes; from 256 on, pairs of bytes as a byte-level BPE has them, whole characters or not."""

    PAIRS = (b"\xe4\xb8", b"\xf0\x9f", b"\x98\x80", b"a\xe4", b"\xad ", b"ab", b"\xef\xbf")

    def encode(self, data: bytes, choice: Sequence[bool]) -> list[int]:
        ids, place, chosen = [], 0, iter(choice)
        while place < len(data):
            pair = data[place : place + 2]
            joined = pair in self.PAIRS and next(chosen, False)
            ids.append(256 + self.PAIRS.index(pair) if joined else data[place])
            place += 2 if joined else 1
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        parts = [bytes([token]) if token < 256 else self.PAIRS[token - 256] for token in ids]
        return b"".join(parts).decode("utf-8", errors="replace")


BYTES = Bytes()
TEXTS = st.text(st.sampled_from("ab é中文😀\u200d👍🏽ß\n"), max_size=40)
CHOICES = st.lists(st.booleans(), max_size=20)
TOKENS = st.lists(st.integers(0, 255 + len(Bytes.PAIRS)), max_size=120)


def pieces(stream: Detokenizer | TextStream, tokens: Sequence[int]) -> list[str]:
    return [*(stream.feed([token]) for token in tokens), stream.finish()]


@given(TEXTS, TEXTS, CHOICES)
@example("", "x" * 100 + "😀", [])
def test_whole_text_comes_back_and_no_character_is_split(before: str, text: str, choice: list[bool]) -> None:
    prompt, tokens = BYTES.encode(before.encode(), choice), BYTES.encode(text.encode(), choice)
    found = pieces(Detokenizer(BYTES, prompt), tokens)
    assert "".join(found) == text
    assert not any(REPLACEMENT in piece for piece in found)


@given(TOKENS)
@example([0xF0, 0x9F, 0x98] * 40)
@example([0x80] * 100)
@example([*b"\xef\xbf\xbd" * 5, *b"abc"])
def test_broken_bytes_come_out_as_decoding_all_at_once_shows_them(tokens: list[int]) -> None:
    assert "".join(pieces(Detokenizer(BYTES), tokens)) == BYTES.decode(tokens)


@given(TOKENS, st.integers(1, 7))
def test_it_does_not_matter_how_many_tokens_come_at_once(tokens: list[int], size: int) -> None:
    stream = Detokenizer(BYTES)
    parts = [stream.feed(tokens[k : k + size]) for k in range(0, len(tokens), size)]
    assert "".join([*parts, stream.finish()]) == BYTES.decode(tokens)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_the_prompt_left_unfinished_belongs_to_the_text(cut: int) -> None:
    data = "so 😀!".encode()
    prompt, rest = list(data[: 3 + cut]), list(data[3 + cut :])
    assert "".join(pieces(Detokenizer(BYTES, prompt, unfinished=True), rest)) == "😀!"


def test_a_replacement_sign_that_stands_in_the_prompt_is_not_repeated() -> None:
    prompt = list(f"so {REPLACEMENT}".encode())
    assert "".join(pieces(Detokenizer(BYTES, prompt), list(b" on"))) == " on"


def test_characters_come_as_soon_as_they_are_whole() -> None:
    stream = Detokenizer(BYTES)
    assert [stream.feed([token]) for token in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A real byte-level BPE whose merges cut through characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    text = ["中文字符 and 😀😁😂 emoji, été naïve", "文中 😃 the then there"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


@given(text=st.text(st.sampled_from("中文字符😀😁 the ét"), max_size=60))
def test_a_trained_tokenizer_streams_whole_characters(trained: Tokenizer, text: str) -> None:
    found = pieces(Detokenizer(trained), trained.encode(text).ids)
    assert "".join(found) == text
    assert not any(REPLACEMENT in piece for piece in found)


def test_words_that_carry_their_space_behind_them() -> None:
    """The first GPT's vocabulary marks ends of words; decoding drops the last mark, so a lone word has no
    space.
    """
    vocabulary = {"<unk>": 0, "hello</w>": 1, "wor": 2, "ld</w>": 3, "!</w>": 4}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    tokens = [2, 3, 1, 2, 3, 4] * 6
    found = pieces(Detokenizer(backend, [1]), tokens)
    assert "".join(found) == backend.decode([1, *tokens])[len("hello") :]
    assert found[:3] == [" wor", "ld", " hello"]


# Stop strings


def cut(text: str, stops: Sequence[str]) -> str:
    """Character by character: the text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


STOPS = st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.lists(st.text("ab \n", max_size=5), max_size=12), STOPS)
@example(["a", "b", "a", "b", "b"], ["abb"])
@example(["xabc"], ["abcd", "b"])
def test_stop_strings_end_the_text_wherever_the_pieces_are_cut(parts: list[str], stops: list[str]) -> None:
    watch, shown = StopStrings(stops), ""
    expected = cut("".join(parts), stops)
    for part in parts:
        shown += watch.feed(part)
        assert expected.startswith(shown)  # nothing was shown that had to be taken back
    shown += watch.finish()
    assert shown == expected
    assert (watch.found is not None) == (expected != "".join(parts))


@given(TEXTS, st.lists(st.sampled_from(["文", "a😀", " é", "ab"]), min_size=1, max_size=2), CHOICES)
def test_tokens_to_text_with_stop_strings(text: str, stops: list[str], choice: list[bool]) -> None:
    stream = TextStream(BYTES, (), stops)
    shown = ""
    for token in BYTES.encode(text.encode(), choice):
        shown += stream.feed([token])
        if stream.stopped:
            break
    assert shown + stream.finish() == cut(text, stops)


def test_what_cannot_become_a_stop_string_is_not_held_back() -> None:
    watch = StopStrings(["\n\nQ:"])
    assert [watch.feed(part) for part in ("a\n", "b", "\n\n", "Q", "R")] == ["a", "\nb", "", "", "\n\nQR"]


def test_unwatched_text_may_hold_stop_strings() -> None:
    stream = TextStream(BYTES, (), ["ab"])
    assert stream.feed(list(b"ab"), watch=False) == "ab"
    assert stream.feed(list(b"xaby")) == "x"
    assert stream.stopped
