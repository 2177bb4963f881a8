"""Rankings, pairs and ratings from files, and what is refused."""

from __future__ import annotations

import csv
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak.data.judged import Judged, read_judged
from daybreak.data.prompts import read_prompts, read_rounds
from daybreak.data.rankings import (
    Ranking,
    append_rating,
    held_out,
    ranking_of,
    read_rankings,
    uncompared,
)
from daybreak.errors import DaybreakError

ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def lines(folder: Path, *rows: Any) -> Path:
    file = folder / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_every_form_is_read(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        {"prompt": "1 + 1 =", "answers": ["3", "2", "two"], "ranks": [3, 1, 1], "demonstration": "2"},
        {"prompt": TALK, "answers": ["a", "b"], "scores": [0.5, 0.25]},
        {"prompt": "1 + 1 =", "chosen": "2", "rejected": "3"},
        {"chosen": [*TALK, said("good")], "rejected": [*TALK, said("bad")]},
        {"prompt": ASKED, "chosen": [said("4")], "rejected": [said("5")]},
        {"messages": ASKED, "answers": ["4", "5", "?"], "ratings": [5, 1, None]},
    )
    first, second, third, fourth, fifth, sixth = read_rankings(file)
    assert first == Ranking("1 + 1 =", ("3", "2", "two"), (-3, -1, -1), "2", f"{file}: line 1")
    assert first.order == [1, 2, 0] and list(first.pairs()) == [(1, 0), (2, 0)]
    assert (second.prompt, second.values) == (tuple(TALK), (0.5, 0.25))
    assert (third.prompt, third.answers, third.values) == ("1 + 1 =", ("2", "3"), (1, 0))
    assert (fourth.prompt, fourth.answers) == (tuple(TALK), ("good", "bad"))
    assert (fifth.prompt, fifth.answers) == (tuple(ASKED), ("4", "5"))
    assert (sixth.prompt, sixth.answers, sixth.values) == (tuple(ASKED), ("4", "5"), (5, 1))


def test_a_prompt_beside_whole_conversations_is_not_read_twice(tmp_path: Path) -> None:
    row = {"prompt": TALK, "chosen": [*TALK, said("good")], "rejected": [*TALK, said("bad")]}
    assert read_rankings(lines(tmp_path, row))[0].prompt == tuple(TALK)
    row = {"prompt": TALK, "chosen": [said("good")], "rejected": [said("bad")]}
    assert read_rankings(lines(tmp_path, row))[0].prompt == tuple(TALK)


def test_a_question_behind_a_system_message_is_not_read_twice(tmp_path: Path) -> None:
    """Data sets name the question alone beside the whole conversations."""
    row = {"prompt": "Hello", "chosen": [*TALK[:2], said("good")], "rejected": [*TALK[:2], said("bad")]}
    assert read_rankings(lines(tmp_path, row))[0].prompt == tuple(TALK[:2])
    row = {"prompt": "Hello", "chosen": [*TALK[2:], said("good")], "rejected": [*TALK[2:], said("bad")]}
    assert read_rankings(lines(tmp_path, row))[0].prompt == tuple(TALK[1:])


def test_what_is_null_is_not_there(tmp_path: Path) -> None:
    """A table of rows of all forms has all their columns."""
    every = dict.fromkeys(("prompt", "messages", "answers", "ranks", "ratings", "chosen", "rejected"))
    every |= dict.fromkeys(("completion", "label"))
    forms: list[dict[str, Any]] = [
        GOOD,
        {"messages": ASKED, "answers": ["4", "5"], "ratings": [1, 0]},
        {"prompt": "1 + 1 =", "chosen": "2", "rejected": "3"},
    ]
    found = read_rankings(lines(tmp_path, *({**every, **form} for form in forms)))
    assert [one.prompt for one in found] == ["1 + 1 =", tuple(ASKED), "1 + 1 ="]
    single = {"messages": ASKED, "completion": "4", "label": True}
    judged = read_judged(lines(tmp_path, *({**every, **form} for form in (*forms, single))))
    assert [one.liked for one in judged] == [True, False, True, False, True, False, True]
    prompts = read_prompts(lines(tmp_path, {**every, "messages": ASKED}))
    assert prompts[0][1] == tuple(ASKED)


def test_pairs_may_have_ratings_beside_them(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1 =", "chosen": "2", "rejected": "3", "ratings": [5, 3]}
    assert read_rankings(lines(tmp_path, row))[0].answers == ("2", "3")


def test_tables_hold_the_same(tmp_path: Path) -> None:
    columns = {
        "prompt": ["1 + 1 =", "2 + 2 ="],
        "answers": [["2", "3"], ["5", "4", "6"]],
        "ranks": [[1, 2], [2, 1, 2]],
    }
    plain = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    wanted = [(one.prompt, one.answers, one.values) for one in read_rankings(lines(tmp_path, *plain))]
    parquet, table = tmp_path / "r.parquet", tmp_path / "r.csv"
    pyarrow.parquet.write_table(pyarrow.table(columns), parquet)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        for row in plain:
            writer.writerow(
                {key: one if isinstance(one, str) else json.dumps(one) for key, one in row.items()}
            )
    for file_ in (parquet, table):
        found = read_rankings(file_)
        assert [(one.prompt, one.answers, one.values) for one in found] == wanted
    assert found[1].where == f"{table}: line 3"


GOOD = {"prompt": "1 + 1 =", "answers": ["2", "3"], "ranks": [1, 2]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one answer": ({**GOOD, "answers": ["2"], "ranks": [1]}, "has 1 rated answer, and comparing takes two"),
    "all ties": ({**GOOD, "ranks": [1, 1]}, "all 2 answers are ties"),
    "empty prompt": ({**GOOD, "prompt": " \n"}, "has an empty prompt"),
    "empty messages": (
        {**GOOD, "prompt": [{"role": "user", "content": ""}]},
        "has an empty prompt",
    ),
    "no prompt": ({"answers": ["2", "3"], "ranks": [1, 2]}, "has neither prompt nor messages"),
    "a number for a prompt": ({**GOOD, "prompt": 3}, "has 3 where a text or a list of messages"),
    "a strange role": ({**GOOD, "prompt": [{"role": "owl", "content": "x"}]}, "roles system, user"),
    "an answer as the question": ({**GOOD, "prompt": [*ASKED, said("4")]}, "ends with an answer"),
    "not a number": ({**GOOD, "ranks": [1, float("nan")]}, "has nan among its ranks"),
    "a word for a rank": ({**GOOD, "ranks": [1, "second"]}, "has 'second' among its ranks"),
    "a truth for a rank": ({**GOOD, "ranks": [1, True]}, "has True among its ranks"),
    "lengths": ({**GOOD, "ranks": [1, 2, 3]}, "lists of equal lengths"),
    "both": (
        {**GOOD, "scores": [1, 2]},
        "needs one of ranks, scores, ratings for its answers, and has ranks",
    ),
    "no values": ({"prompt": "?", "answers": ["2", "3"]}, "and has none"),
    "no columns": ({"prompt": "?", "text": "x"}, "has the columns prompt, text; it needs prompt with"),
    "half a pair": ({"prompt": "?", "chosen": "x"}, "has the columns prompt, chosen; it needs"),
    "a pair without prompt": ({"chosen": "x", "rejected": "y"}, "it needs prompt with"),
    "other talks": (
        {"chosen": [*TALK, said("a")], "rejected": [*ASKED, said("b")]},
        "must be the same messages up to the last",
    ),
    "an empty answer": ({**GOOD, "answers": ["2", ""]}, "has an empty answer"),
    "a number for an answer": ({**GOOD, "answers": ["2", 3]}, "has 3 as an answer"),
    "half a character in a prompt": ({**GOOD, "prompt": "\ud800"}, "is not UTF-8 text"),
    "half a character in an answer": ({**GOOD, "answers": ["2", "\ud800"]}, "is not UTF-8 text"),
    "a number beyond all measure": ({**GOOD, "ranks": [1, 10**400]}, "among its ranks; give a number"),
    "no answers at all": ({**GOOD, "answers": None}, "has the columns prompt, ranks; it needs"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_ranking_is_named(name: str, tmp_path: Path) -> None:
    row, told = BAD[name]
    file = lines(tmp_path, GOOD, row)
    with pytest.raises(DaybreakError) as caught:
        read_rankings(file)
    assert told in str(caught.value) and f"{file}: line 2" in str(caught.value)


def test_ratings_of_single_answers_are_passed_over(tmp_path: Path) -> None:
    """Who rates answers in a conversation rates most of them alone."""
    single = {"messages": ASKED, "answers": ["a", "b"], "ratings": [1, None]}
    alike = {"messages": ASKED, "answers": ["a", "b"], "ratings": [1, 1]}
    file = lines(tmp_path, single, {**single, "ratings": [1, 2]}, alike)
    assert [one.values for one in read_rankings(file)] == [(1.0, 2.0)] and uncompared(file) == 2
    with pytest.raises(DaybreakError, match="--loss kto"):
        read_rankings(lines(tmp_path, single))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    with pytest.raises(DaybreakError, match=r"r.jsonl cannot be read: No such file"):
        read_rankings(file)
    file.write_text('{"prompt": \n')
    with pytest.raises(DaybreakError, match=r"r.jsonl: line 1 is not JSON .*correct it, or remove it"):
        read_rankings(file)
    file.write_text("[" * 100_000 + "\n")
    with pytest.raises(DaybreakError, match="line 1 is not JSON"):
        read_rankings(file)
    file.write_text("[1]\n")
    with pytest.raises(DaybreakError, match="line 1 holds a list; a row is an object"):
        read_rankings(file)
    file.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DaybreakError, match="no text in UTF-8"):
        read_rankings(file)
    file.write_text("\n")
    with pytest.raises(DaybreakError, match="holds no rankings; give a file with rows of prompt with"):
        read_rankings(file)
    for name, told in {"r.txt": "of no known kind", "r.parquet": "is not parquet"}.items():
        (tmp_path / name).write_text("nothing of the sort")
        with pytest.raises(DaybreakError, match=told):
            read_rankings(tmp_path / name)
    (tmp_path / "r.csv").write_text("prompt,chosen,rejected\na,b\n")
    with pytest.raises(DaybreakError, match="line 2 has another number of cells"):
        read_rankings(tmp_path / "r.csv")


def test_a_mistake_in_json_is_found_in_its_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"\n')
    with pytest.raises(DaybreakError, match=r"line 2 is not JSON \(Expecting ',' delimiter at column 15\)"):
        read_rankings(file)


def test_what_a_row_has_instead_of_a_prompt_is_told(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n')
    for read in (read_prompts, read_rounds, read_rankings):
        with pytest.raises(DaybreakError, match=r"\(it has instruction, output\); a row needs one of them"):
            read(file)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=9).filter(lambda ranks: len(set(ranks)) > 1))
def test_pairs_are_all_that_are_no_ties(ranks: list[int]) -> None:
    ranking = ranking_of(
        {"prompt": "?", "answers": [f"a{place}" for place in range(len(ranks))], "ranks": ranks}, "here"
    )
    pairs = set(ranking.pairs())
    assert pairs == {(a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]}
    assert [ranks[place] for place in ranking.order] == sorted(ranks)


# Ratings ---------------------------------------------------------------------------------------------------


def test_ratings_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "ratings.jsonl"
    append_rating(file, TALK, ["naïve\nanswer", "b"], [1, -1], model="first")
    append_rating(file, ASKED, ["4", "5", "6"], [3, None, 2.5])
    first, second = read_rankings(file)
    assert (first.prompt, first.answers, first.values) == (tuple(TALK), ("naïve\nanswer", "b"), (1, -1))
    assert (second.answers, second.values) == (("4", "6"), (3, 2.5))
    row = json.loads(file.read_text().splitlines()[0])
    assert row["model"] == "first" and row["time"].endswith("+00:00")


def test_a_model_that_said_nothing_can_be_rated(tmp_path: Path) -> None:
    file = tmp_path / "ratings.jsonl"
    append_rating(file, ASKED, ["", "4"], [-1, 1])
    append_rating(file, ASKED, [""], [-1])
    assert [one.answers for one in read_rankings(file)] == [("", "4")]
    assert [(one.answer, one.liked) for one in read_judged(file)] == [("", False), ("4", True), ("", False)]


@pytest.mark.parametrize(
    "ratings, told",
    [([1], "2 answers and 1 ratings"), ([1, float("nan")], "give numbers, or None for an unrated answer")],
)
def test_ratings_that_could_not_be_read_back_are_refused(
    ratings: list[float], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DaybreakError, match=told):
        append_rating(tmp_path / "r.jsonl", ASKED, ["a", "b"], ratings)
    assert not (tmp_path / "r.jsonl").exists()


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"messages": [')
    append_rating(file, ASKED, ["a", "b"], [1, 0])
    damaged, whole = file.read_text().splitlines()
    assert damaged == '{"messages": [' and json.loads(whole)["answers"] == ["a", "b"]
    with pytest.raises(DaybreakError, match="line 1 is not JSON"):
        read_rankings(file)


def _write_many(file: Path, name: str) -> None:
    for number in range(30):
        append_rating(file, ASKED, [f"{name} {number} " + "long " * 3000, "b"], [1, 0])


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(file, name)) for name in "ab"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    found = read_rankings(file)
    assert len(found) == 60
    assert {one.answers[0][:4].strip() for one in found} >= {"a 0", "b 29"}


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").mkdir()
    with pytest.raises(DaybreakError, match=r"r.jsonl cannot be written: Is a directory"):
        append_rating(tmp_path / "r.jsonl", ASKED, ["a", "b"], [1, 0])


def test_no_prompt_stands_on_both_sides() -> None:
    rankings = [
        ranking_of({"prompt": f"prompt {number % 400}", "answers": ["a", "b"], "ranks": [1, 2]}, str(number))
        for number in range(800)
    ]
    learned, kept = held_out(rankings, 0.1)
    assert len(learned) + len(kept) == 800 and 40 <= len(kept) <= 120
    assert not {one.prompt for one in learned} & {one.prompt for one in kept}
    assert held_out(rankings, 0.0) == (rankings, [])
    assert held_out(kept, 0.1)[1] == kept


# Answers alone ---------------------------------------------------------------------------------------------


def test_answers_are_judged_each_for_itself(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        {"prompt": "1 + 1 =", "completion": " 2", "label": True},
        {"prompt": ASKED, "completion": [said("5")], "label": False},
        {"messages": ASKED, "answers": ["4"], "ratings": [1]},
        {"messages": ASKED, "answers": ["5", "6", "7"], "ratings": [-1, 0, None]},
        {"messages": ASKED, "answers": ["a", "b", "c"], "ratings": [5, 3, 1]},
        {"messages": ASKED, "answers": ["a", "b"], "ratings": [3, 3]},
        {"prompt": "?", "chosen": "x", "rejected": "y"},
        {"prompt": "?", "answers": ["x", "y", "z"], "ranks": [3, 1, 1]},
    )
    found = [(one.answer, one.liked) for one in read_judged(file)]
    assert found[:4] == [(" 2", True), ("5", False), ("4", True), ("5", False)]
    assert found[4:6] == [("a", True), ("c", False)]
    assert found[6:] == [("x", True), ("y", False), ("x", False), ("y", True), ("z", True)]
    first, second = read_judged(file)[:2]
    assert first.prompt == "1 + 1 =" and second == Judged(tuple(ASKED), "5", False, f"{file}: line 2")


def test_a_table_says_true_and_false(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("prompt,completion,label\na,b,True\na,c,false\n")
    assert [one.liked for one in read_judged(tmp_path / "r.csv")] == [True, False]


@pytest.mark.parametrize(
    "row, told",
    [
        ({"prompt": "?", "completion": "x"}, "line 1 has the columns prompt, completion and the label None"),
        (
            {"prompt": "?", "completion": "x", "label": 3},
            "the label 3; it needs a completion, and true or false",
        ),
        ({"prompt": "?", "label": True}, "needs a completion"),
        ({"completion": "x", "label": True}, "line 1 has neither prompt nor messages"),
        ({"prompt": "?", "completion": "", "label": True}, "line 1 has an empty answer"),
        ({"messages": ASKED, "answers": ["4"], "ratings": [0]}, "holds no answer that was liked or not"),
        (
            {"prompt": "?", "answers": ["4"], "ranks": [1]},
            "from which `daybreak align dpo --loss kto` learns",
        ),
    ],
)
def test_what_is_no_judged_answer_is_named(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DaybreakError) as caught:
        read_judged(lines(tmp_path, row))
    assert told in str(caught.value)
