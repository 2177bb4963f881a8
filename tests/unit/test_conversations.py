"""Demonstrations as people have them, and the tokens that are made of them."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from daybreak.data.conversations import Demonstration, read_demonstrations
from daybreak.engine import chat
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.text.answers import keep_template, lessons
from daybreak.text.chat_template import JINJA
from daybreak.text.tokenizer import Tokenizer
from tests.unit.tiny_run import byte_tokenizer
from tests.unit.tiny_training import model_of

TALK = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Two."}]


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_an_empty_cell_is_no_missing_column(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt,completion\na,\nb,c\n")
    with pytest.raises(DaybreakError, match="line 2 has no completion; fill it in, or remove the row"):
        read_demonstrations(file)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"prompt": "Two?", "completion": " Two."},
        {"instruction": "Two?", "input": "Or three?", "output": "Two."},
    ],
    ids=lambda row: next(iter(row)),
)
def test_every_form_in_every_kind_of_file(tmp_path: Path, kind: str, row: dict[str, Any]) -> None:
    file = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        lines(file, row, row)
    elif kind == "json":
        file.write_text(json.dumps([row, row], indent=1))
    elif kind == "csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(row))
            writer.writeheader()
            writer.writerows([{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}] * 2)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), file)
    found = read_demonstrations(file)
    assert len(found) == 2 and found[1].where.startswith(f"{file}: ")
    first = found[0]
    if "messages" in row:
        assert first.messages == tuple(TALK)
    elif "prompt" in row:
        assert first.text == ("Two?", " Two.")
    else:
        assert [message["content"] for message in first.messages] == ["Two?\n\nOr three?", "Two."]


def test_prompts_may_be_messages_and_columns_may_have_other_names(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": TALK[:1], "completion": TALK[1:]})
    assert read_demonstrations(file)[0].messages == tuple(TALK)
    file = lines(tmp_path / "b.jsonl", {"prompt": TALK[:1], "completion": "Two."})
    assert read_demonstrations(file)[0].messages == tuple(TALK)
    file = lines(tmp_path / "c.jsonl", {"question": "Two?", "answer": "Two."})
    names = {"instruction": "question", "output": "answer"}
    assert read_demonstrations(file, columns=names)[0].messages == tuple(TALK)


def test_the_input_of_alpaca_may_be_empty_or_absent(tmp_path: Path) -> None:
    for more in ({}, {"input": ""}, {"input": None}):
        file = lines(tmp_path / "a.jsonl", {"instruction": "Two?", "output": "Two.", **more})
        assert read_demonstrations(file)[0].messages == tuple(TALK)


def test_what_follows_the_last_answer_is_left_out(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"messages": [*TALK, {"role": "user", "content": "Thanks"}]})
    assert read_demonstrations(file)[0].messages == tuple(TALK)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Two"}, r"line 2 has the columns text; a row needs messages; .*--data\.columns"),
        (
            {"prompt": "", "completion": "a", "messages": TALK},
            r"more than one form .*--data\.form messages or",
        ),
        ({"messages": "Two"}, r"line 2 has 'Two' where a list of messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"line 2: message 1 is .*robot"),
        ({"messages": TALK[:1]}, r"line 2 has no answer.*remove the row"),
        ({"messages": [TALK[0], {"role": "assistant", "content": " "}]}, "line 2 has an empty answer"),
        ({"prompt": "a", "completion": ""}, "line 2 has an empty completion"),
        ({"prompt": 3, "completion": "a"}, "line 2: prompt is 3; give a text"),
        ({"instruction": " ", "output": "a"}, "line 2 has an empty instruction"),
        ({"instruction": "a", "output": None}, "line 2 has no output; fill it in"),
        ({"prompt": "\ud800", "completion": "a"}, "line 2 is not UTF-8 text"),
        ({"instruction": "a", "input": "\ud800", "output": "a"}, "line 2 is not UTF-8 text"),
    ],
)
def test_bad_rows_are_named_with_the_remedy(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(DaybreakError, match=said):
        read_demonstrations(file)


def test_columns_that_are_null_are_of_no_form(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b", "messages": None})
    assert read_demonstrations(file)[0].text == ("a", "b")


def test_a_form_can_be_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b", "messages": TALK})
    assert read_demonstrations(file, "completion")[0].text == ("a", "b")
    assert read_demonstrations(file, "messages")[0].messages == tuple(TALK)
    with pytest.raises(DaybreakError, match=r"data\.columns has 'promt'.*prompt"):
        read_demonstrations(file, columns={"promt": "a"})


# Tokens --------------------------------------------------------

MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FORGETFUL = (  # shows earlier answers shortened, as templates of models that think do
    "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last else m.content[:3] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PIECES = [
    "Two",
    " two",
    ":",
    "\n",
    " ",
    "A",
    "User: ",
    "naïve",
    "日本",
    "<|end|>",
    "<|endoftext|>",
    "nt:",
    ".",
    "  x",
]


def merging() -> Tokenizer:
    """A tokenizer whose tokens go over every border: it knows no words, and was trained on transcripts."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["User: Two?\n\nAssistant: Two two.\n\nUser: A x:\n\nAssistant: A.\nassistant: Twouser: "] * 20
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, bos="<|endoftext|>", eos="<|endoftext|>")


def tokenizers() -> dict[str, Tokenizer]:
    found = {
        "bytes": byte_tokenizer(),
        "bos": byte_tokenizer(),
        "merging": merging(),
        "marked": byte_tokenizer(("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
        "forgetful": byte_tokenizer(("<|end|>",)),
    }
    found["bos"].adds_bos = True
    found["marked"].files[JINJA] = MARKED.encode()
    found["forgetful"].files[JINJA] = FORGETFUL.encode()
    return found


@functools.cache
def speaking(name: str) -> LanguageModel:
    model = model_of()
    model.tokenizer = tokenizers()[name]
    keep_template(model.tokenizer)
    return model


contents = some.lists(some.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
answers = contents.filter(lambda text: bool(text.strip()))


@given(
    some.sampled_from(["bytes", "bos", "merging", "marked", "forgetful"]),
    some.lists(some.tuples(contents, answers), min_size=1, max_size=3),
    some.one_of(some.none(), contents),
)
@settings(max_examples=40, deadline=None)
def test_what_stands_before_an_answer_is_what_is_read_when_it_is_asked_for(
    name: str, turns: list[tuple[str, str]], system: str | None
) -> None:
    model = speaking(name)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    try:
        prompts = [
            chat.prompt(model, messages[:place])
            for place, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        found = lessons(model.tokenizer, messages)  # type: ignore[arg-type]
    except DaybreakError as error:
        assert "makes special tokens of what a message says" in str(error)
        return
    learned = [(list(one.tokens), first, end) for one in found for first, end in one.answers]
    assert len(learned) == len(turns)
    ends = set(model.tokenizer.specials.values())  # type: ignore[union-attr]
    for (tokens, first, end), prompt, (_, answer) in zip(learned, prompts, turns, strict=True):
        assert tokens[:first] == prompt
        assert tokens[end - 1] in ends and not ends & set(tokens[first : end - 1])
        written = model.tokenizer.decode(tokens[first : end - 1])  # type: ignore[union-attr]
        assert written.strip() == answer.strip()


def test_a_conversation_is_one_lesson_where_its_tokens_go_on() -> None:
    talk = [*TALK, {"role": "user", "content": "A"}, {"role": "assistant", "content": "A."}]
    assert len(lessons(speaking("bytes").tokenizer, talk)) == 1  # type: ignore[arg-type]
    assert len(lessons(speaking("marked").tokenizer, talk)) == 1  # type: ignore[arg-type]
    long = [TALK[0], {"role": "assistant", "content": "Two, or so"}, *talk[2:]]
    apart = lessons(speaking("forgetful").tokenizer, long)  # type: ignore[arg-type]
    assert [len(one.answers) for one in apart] == [1, 1]


def test_tokens_join_over_the_border_in_the_case_that_is_made_for_it() -> None:
    """Else the property above would prove nothing."""
    tokenizer = speaking("merging").tokenizer
    assert tokenizer is not None
    whole = tokenizer.encode("User: Two?\n\nAssistant: Two", bos=False)
    before = tokenizer.encode("User: Two?\n\nAssistant:", bos=False)
    assert whole[: len(before)] != before


def test_a_template_is_kept_where_there_was_none() -> None:
    model = speaking("bos")
    assert model.tokenizer is not None
    ids = chat.prompt(model, TALK[:1])
    assert model.tokenizer.decode(ids, skip_special=False) == "<|endoftext|>User: Two?\n\nAssistant:"
    assert Demonstration(tuple(TALK)).text is None
