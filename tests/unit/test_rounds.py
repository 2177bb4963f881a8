"""What a model reads before each answer of a conversation whose answers are not written yet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak.data.conversations import read_demonstrations
from daybreak.data.judged import read_judged
from daybreak.data.prompts import read_prompts, read_rounds
from daybreak.data.rankings import read_rankings
from daybreak.errors import DaybreakError
from daybreak.text.answers import DEFAULT
from daybreak.text.chat import encode_chat, turn_end
from daybreak.text.rounds import round_ids
from daybreak.text.tokenizer import Tokenizer
from tests.unit.tiny_run import WORDS, byte_tokenizer

MARKS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "</s>")
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LINES = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
TEMPLATES = {
    "plain": (PLAIN, "", ""),
    "lines": (LINES, "", ""),
    "transcript": (DEFAULT, " ", ""),
    "brackets": (BRACKETS, " ", " "),
}
"""A template, and what a model writes around its answer."""


def spoken(template: str, tokenizer: Tokenizer | None = None) -> Tokenizer:
    tokenizer = tokenizer or byte_tokenizer(MARKS)
    tokenizer.files["chat_template.jinja"] = template.encode()
    return tokenizer


def pieced() -> Tokenizer:
    """Words of several letters, as byte pairs make them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    backend.add_special_tokens(["<|endoftext|>", *MARKS])
    return Tokenizer(backend, bos="<|endoftext|>", eos="<|endoftext|>")


def check(tokenizer: Tokenizer, name: str, asked: list[str], told: list[str]) -> None:
    """The ids before each answer, with what was written between them, are those of the conversation."""
    template, before, behind = TEMPLATES[name]
    spoken(template, tokenizer)
    rounds = [[{"role": "user", "content": text}] for text in asked]
    read, messages = list[int](), list[dict[str, str]]()
    for number, ids in enumerate(round_ids(tokenizer, rounds)):
        messages += rounds[number]
        read += ids
        assert read == encode_chat(tokenizer, template, messages)
        if number < len(told):
            read += tokenizer.encode(before + told[number] + behind, bos=False, special=False)
            messages.append({"role": "assistant", "content": told[number]})


TEXTS = st.lists(
    st.sampled_from([*MARKS, "<|endoftext|>", "<|", "User:", "[/INST]", "\n", " ", "a", "é", "."]),
    min_size=1,
    max_size=5,
).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(asked=st.lists(TEXTS, min_size=3, max_size=3), told=st.lists(TEXTS, min_size=2, max_size=2))
def test_a_conversation_of_bytes_is_the_template_s_own(name: str, asked: list[str], told: list[str]) -> None:
    """Also where people or the policy spell marks in letters: no turn of theirs ends by that."""
    told = [text.strip() or "x" for text in told]  # some templates trim what is said
    check(byte_tokenizer(MARKS), name, asked, told)


PIECED = pieced()
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(asked=st.lists(SENTENCES, min_size=3, max_size=3), told=st.lists(SENTENCES, min_size=2, max_size=2))
def test_so_is_one_of_longer_pieces_where_they_join_alike(
    name: str, asked: list[str], told: list[str]
) -> None:
    check(PIECED, name, asked, told)


def test_messages_between_answers_are_all_read() -> None:
    """A system message, and answers that are given, stand where they were put."""
    tokenizer = spoken(PLAIN)
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    more = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "3"}, talk[1]]
    first, second = round_ids(tokenizer, [talk, more])
    end = turn_end(tokenizer, PLAIN)
    assert first == encode_chat(tokenizer, PLAIN, talk) and first.count(end) == 4
    text = "<|end|><|user|>and?<|end|><|assistant|>3<|end|><|user|>one<|end|><|assistant|>"
    assert tokenizer.decode(second, skip_special=False) == text and second[0] == end


ASKED = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
THOUGHTFUL = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
)
SPARING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'user' or loop.last %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDY = THOUGHTFUL.replace("{{ m.content }}", "said: {{ m.content }}").replace("<think></think>", "")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "needs a chat template that puts a mark behind each answer"),
        (DEFAULT.replace(" + eos_token", ""), "needs a chat template that puts a mark behind each answer"),
        (THOUGHTFUL, "shows earlier turns otherwise than the model wrote them"),
        (SPARING, "shows earlier turns otherwise than the model wrote them"),
        (WORDY, "shows earlier turns otherwise than the model wrote them"),
    ],
    ids=["none", "no mark", "another beginning", "another end", "words before an answer"],
)
def test_templates_in_which_no_answer_can_be_gone_on_from(template: str | None, said: str) -> None:
    tokenizer = byte_tokenizer(MARKS) if template is None else spoken(template)
    with pytest.raises(DaybreakError, match=said):
        round_ids(tokenizer, ASKED)


# Files

USER, OPEN = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": None}
NEXT, GIVEN = {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Hi."}


def lines(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_messages_are_cut_at_open_turns(tmp_path: Path) -> None:
    talks = [[USER, OPEN, NEXT, OPEN, USER], [USER, GIVEN, NEXT, OPEN, USER, GIVEN, NEXT], [USER]]
    file = lines(tmp_path, *({"messages": talk} for talk in talks), {"prompt": talks[0]}, {"prompt": "text"})
    first, second, third, fourth, fifth = (rounds for _, rounds in read_rounds(file))
    assert first == fourth == ((USER,), (NEXT,), (USER,))
    assert second == ((USER, GIVEN, NEXT), (USER, GIVEN, NEXT))
    assert (third, fifth) == (((USER,),), ("text",))
    table, parquet = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    with table.open("w", newline="") as handle:
        csv.writer(handle).writerows([["messages"], *([json.dumps(talk)] for talk in talks)])
    pyarrow.parquet.write_table(pyarrow.table({"messages": talks}), parquet)
    for other in (table, parquet):
        assert [rounds for _, rounds in read_rounds(other)] == [first, second, third]


BAD: list[tuple[list[Any], str]] = [
    ([USER, OPEN], "line 1 ends with an open turn; leave it out"),
    ([USER, OPEN, NEXT, GIVEN], "line 1: the prompt ends with an answer"),
    ([{"role": "user", "content": None}, OPEN, NEXT], "content of message 1 is null, and its role 'user'"),
    ([{"role": "system", "content": None}, USER], "content of message 1 is null, and its role 'system'"),
    ([USER, OPEN, OPEN, NEXT], "messages 2 and 3 are both the assistant's"),
    ([USER, OPEN, GIVEN, NEXT], "messages 2 and 3 are both the assistant's"),
    ([USER, GIVEN, OPEN, NEXT], "messages 2 and 3 are both the assistant's"),
    ([USER, OPEN, NEXT, GIVEN, GIVEN, USER], "messages 4 and 5 are both the assistant's"),
    ([OPEN, USER], "message 1 is left open and answers nobody"),
    ([{"role": "system", "content": "Be kind."}, OPEN, USER], "message 2 is left open and answers nobody"),
    ([USER, OPEN, {"role": "user", "content": 3}], "message 3 is {'role': 'user', 'content': 3}"),
    ([USER, OPEN, "so?"], "message 3 is 'so\\?'"),
]


@pytest.mark.parametrize(("talk", "said"), BAD)
def test_open_turns_that_nobody_can_write(talk: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=said):
        read_rounds(lines(tmp_path, {"messages": talk}))


READERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "prompts": (read_prompts, {"messages": [USER, OPEN, NEXT]}),
    "rankings": (read_rankings, {"messages": [USER, OPEN, NEXT], "answers": ["a", "b"], "ranks": [1, 2]}),
    "pairs": (
        read_rankings,
        {"chosen": [USER, OPEN, NEXT, GIVEN], "rejected": [USER, OPEN, NEXT, {**GIVEN, "content": "No."}]},
    ),
    "judged": (read_judged, {"prompt": [USER, OPEN, NEXT], "completion": "a", "label": True}),
    "demonstrations": (read_demonstrations, {"messages": [USER, OPEN, NEXT, GIVEN]}),
}


@pytest.mark.parametrize("name", READERS)
def test_whoever_writes_no_rounds_says_so(name: str, tmp_path: Path) -> None:
    read, row = READERS[name]
    with pytest.raises(
        DaybreakError, match=r"line 1: the content of message 2 is null.*`daybreak align ppo`"
    ):
        read(lines(tmp_path, row))
