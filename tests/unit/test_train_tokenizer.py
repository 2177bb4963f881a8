"""A tokenizer of one's own writes every text back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer
from daybreak.text.train_tokenizer import train_tokenizer

CODE = [
    f"def name_{n}(self, value{n}):\n    return self.value{n} + [{n}, {n * 37}]\n\n\n" * 3 for n in range(20)
]
TOKENIZER = train_tokenizer(CODE, 320)


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(CODE))
def test_every_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_line_break_and_indentation_are_one_token() -> None:
    assert TOKENIZER.vocabulary == 320
    pieces = [TOKENIZER.decode([number]) for number in TOKENIZER.encode(CODE[0])]
    assert "):\n    " in pieces
    assert TOKENIZER.bos_id == TOKENIZER.eos_id == 0


def test_it_is_read_back_from_its_files(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again is not None
    assert again.encode(CODE[3]) == TOKENIZER.encode(CODE[3])
    assert (again.bos_id, again.eos_id) == (0, 0)


@pytest.mark.parametrize(("vocabulary", "words"), [(256, "cannot hold all bytes"), (50_000, "ask for fewer")])
def test_a_vocabulary_that_cannot_be_is_refused(vocabulary: int, words: str) -> None:
    with pytest.raises(DaybreakError, match=words):
        train_tokenizer(CODE, vocabulary)
