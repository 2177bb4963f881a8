"""Classifiers: what is read of texts, what is learned, and what transformers makes of the same folder."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as some
from torch import Tensor
from torch.nn import functional

import daybreak
from daybreak import families
from daybreak import settings as reading
from daybreak.architecture import Rotary
from daybreak.checkpoint.fill import empty_decoder
from daybreak.checkpoint.scored import load_scored, save_scored
from daybreak.cli import main
from daybreak.compare.redraw import redraw
from daybreak.data.labelled import (
    Columns,
    Item,
    apart,
    are_counted,
    classes_of,
    kind_of,
    read_items,
    right_option,
)
from daybreak.data.order import draw
from daybreak.errors import DaybreakError
from daybreak.families.trials import trials
from daybreak.model.heads import scorer_of
from daybreak.model.vocabulary import add_tokens
from daybreak.objectives import agreement
from daybreak.objectives.classification import last_real
from daybreak.train.task_answers import answers
from daybreak.train.task_model import Layout, load_task_model
from daybreak.train.task_settings import TaskSettings
from daybreak.train.tasks import TaskJob, job_of
from daybreak.train.tuning_run import TuningOutcome, tune
from tests.unit.tiny_models import speaking
from tests.unit.tiny_run import Silent
from tests.unit.tiny_training import model_of

# Text -> tokens ------------------------------------------------

A, B, C = [1, 2, 3, 4], [5, 6], [7]
MARKED: dict[str, Any] = {"before": (90,), "between": (91,), "behind": (92,)}


@pytest.mark.parametrize(
    ("task", "texts", "options", "read"),
    [
        ("classification", [A], [], [[90, 1, 2, 3, 4, 92]]),
        ("entailment", [A, B], [], [[90, 1, 2, 3, 4, 91, 5, 6, 92]]),
        ("similarity", [A, B], [], [[90, 1, 2, 3, 4, 91, 5, 6, 92], [90, 5, 6, 91, 1, 2, 3, 4, 92]]),
        ("choice", [B, C], [A, C], [[90, 5, 6, 7, 91, 1, 2, 3, 4, 92], [90, 5, 6, 7, 91, 7, 92]]),
        ("choice", [], [A, C], [[90, 1, 2, 3, 4, 92], [90, 7, 92]]),
    ],
)
def test_texts_are_laid_out_as_in_the_paper(
    task: Any, texts: list[list[int]], options: list[list[int]], read: list[list[int]]
) -> None:
    layout = Layout(task, **MARKED)
    assert layout.sequences(texts, options) == read and not layout.is_cut(texts, options)


@given(
    some.sampled_from(["classification", "entailment", "similarity", "choice"]),
    some.lists(some.integers(1, 30), min_size=4, max_size=4),
    some.integers(8, 40),
    some.booleans(),
)
@how(max_examples=60, deadline=None)
def test_what_is_too_long_loses_the_ends_of_its_longest_texts(
    task: Any, sizes: list[int], context: int, marked: bool
) -> None:
    layout = Layout(task, **(MARKED if marked else {}), context=context)
    drawn = [[1000 + place * 100 + n for n in range(size)] for place, size in enumerate(sizes)]
    texts = drawn[:1] if task in ("classification", "choice") else drawn[:2]
    options = drawn[2:] if task == "choice" else []
    found = layout.sequences(texts, options)
    whole = Layout(task, **(MARKED if marked else {}), context=10**6).sequences(texts, options)
    assert all(len(one) <= context for one in found)
    assert layout.is_cut(texts, options) == any(len(one) > context for one in whole)
    for one, other in zip(found, whole, strict=True):
        if len(other) <= context:
            assert one == other
        else:
            assert len(one) == context, "room is left that a text could have"
            kept = [sum(token // 100 == 10 + place for token in one) for place in range(4)]
            cut = [n for n, size in zip(kept, sizes, strict=True) if 0 < n < size]
            assert max(kept) - min(cut) <= 1, "a text is cut and a longer one is not"


def test_new_tokens_have_rows_of_their_own() -> None:
    for family in ("gpt2", "gpt_j"):
        model = model_of(family, **({"positions": Rotary(4, "neighbours")} if family == "gpt_j" else {}))
        before = {name: one.clone() for name, one in model.decoder.named_parameters()}
        tokens = torch.arange(9)[None]
        logits = model.logits(tokens)
        assert add_tokens(model.decoder, 59, 3) == [59, 60, 61]  # 61 rows, of which two pad the table
        assert model.architecture.vocabulary == 62
        torch.testing.assert_close(model.logits(tokens)[..., :59], logits[..., :59])
        names = ["tokens.weight"] if family == "gpt2" else ["tokens.weight", "head.weight", "head.bias"]
        for name, one in model.decoder.named_parameters():
            assert torch.equal(one[:59], before[name][:59])
            assert (len(one) == 62) == (name in names)
            if name in names[:2]:
                assert 0.01 < float(one[59:].detach().std()) < 0.03


# Losses --------------------------------------------------------


def rows(file: Path, count: int = 60, **more: Any) -> Path:
    draw = random.Random(1)
    words = {"good": ["lovely", "kind"], "bad": ["awful", "cruel"]}
    with file.open("w") as handle:
        for number in range(count):
            mood = draw.choice(["good", "bad"])
            text = f"A {draw.choice(words[mood])} day {number}"
            other = f"A {draw.choice(words[draw.choice(['good', 'bad'])])} one"
            right = draw.randrange(2)
            moods = ["good" if place == right else "bad" for place in range(2)]
            options = [f"{draw.choice(words[own])} {number}" for own in moods]
            row = {"text": text, "other": other, "mood": mood, "a": options[0], "b": options[1]}
            alike = 0.5 + sum(word in text + other for word in words["good"])
            handle.write(json.dumps({**row, "right": right, "alike": alike, **more}) + "\n")
    return file


TASKS: dict[str, dict[str, Any]] = {
    "classification": {"text": ["text"], "label": "mood"},
    "entailment": {"text": ["text", "other"], "label": "mood"},
    "similarity": {"text": ["text", "other"], "label": "alike"},
    "choice": {"text": ["text"], "choices": ["a", "b"], "label": "right"},
}


def settings(file: Path, task: str = "classification", **tree: Any) -> TaskSettings:
    base = {
        "task": task,
        "data": {"file": str(file), "held_out": 0.2, **TASKS[task]},
        "batch": {"examples": 8, "micro": 3},
        "dropout": {"residual": 0.0, "embedding": 0.0, "attention": 0.0},
        "head_dropout": 0.0,
    }
    return reading.build(TaskSettings, reading.merged(base, tree))


def by_hand(job: TaskJob, weight: float) -> Tensor:
    """The loss of all examples, one sequence after another."""
    total, decoder = torch.zeros(()), job.model.decoder
    for row in job.examples:
        states, spoken = [], []
        for one in row.sequences:
            hidden = decoder(decoder.reading(torch.tensor([one])))[0]
            states.append(hidden[-1])
            matrix = decoder.tokens.weight
            logits = functional.linear(hidden[:-1], matrix)
            spoken.append(functional.cross_entropy(logits, torch.tensor(one[1:])))
        if job.model.layout.task == "choice":
            scores = torch.stack([state @ decoder.head.weight[0] for state in states])
        else:
            scores = decoder.head.weight @ torch.stack(states).sum(0)
        own = -scores.log_softmax(0)
        loss = (scores[0] - row.label) ** 2 if job.model.numbers else own[int(row.label)]
        total = total + loss + weight * torch.stack(spoken).mean()
    return total


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("head", ["extract", "last"])
def test_the_loss_is_the_papers(tmp_path: Path, task: str, head: str) -> None:
    file = rows(tmp_path / "rows.jsonl", 12)
    for language in (None, 0.25):
        job = job_of(speaking(), settings(file, task, head=head, language=language))
        job.modules.train()
        weight = 0.25 if language else {"extract": 0.5, "last": 0.0}[head]
        wanted = by_hand(job, weight)
        scored = [job.loss(part) for part in job.parts(job.examples, 5)]
        torch.testing.assert_close(sum(one.loss for one in scored), wanted, rtol=1e-5, atol=1e-5)
        assert sum(one.count for one in scored) == len(job.examples)


def test_an_untied_head_predicts_the_texts_and_is_not_kept(tmp_path: Path) -> None:
    model = speaking("gpt_j", positions=Rotary(4, "neighbours"))
    job = job_of(model, settings(rows(tmp_path / "rows.jsonl", 12)))
    scored = job.loss(job.examples[:4])
    scored.loss.backward()  # type: ignore[no-untyped-call]
    named = dict(job.modules.named_parameters())
    assert named["language.matrix.weight"].grad is not None
    assert float(scored.figures["language_loss"]) / 4 == pytest.approx(5.6, abs=0.5)  # ln 260
    job.save(tmp_path / "model")
    assert load_task_model(tmp_path / "model").decoder.head.weight.shape == (2, 32)


def test_texts_of_a_single_token_leave_nothing_to_predict(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": one, "mood": one in "ab"}) + "\n" for one in "abcdef"))
    job = job_of(speaking(), settings(file, head="last", language=0.5, data={"held_out": 0.0}))
    scored = job.loss(job.examples)
    assert float(scored.figures["language_loss"]) == 0.0 and scored.loss.requires_grad


def test_one_mask_is_drawn_for_all_options_of_a_row(tmp_path: Path) -> None:
    job = job_of(speaking(), settings(rows(tmp_path / "r.jsonl", 12), "choice", head_dropout=0.5))
    job.modules.train()
    torch.manual_seed(0)
    dropped = job._dropped(torch.ones(5, 32), [2, 3])
    assert torch.equal(dropped[0], dropped[1]) and torch.equal(dropped[2], dropped[4])
    assert not torch.equal(dropped[1], dropped[2])
    job.modules.eval()
    assert torch.equal(job._dropped(torch.ones(2, 32), [2]), torch.ones(2, 32))


# transformers --------------------------------------------------

SCORED = [
    (name, label)
    for name in ("gpt", "gpt2", "gpt_neo", "gpt_j", "gpt_neox", "opt", "bloom", "llama")
    for label in list(trials(name))[:2]
]


@pytest.mark.parametrize(("name", "label"), SCORED, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_scores_the_same(name: str, label: str, side: str, tmp_path: Path) -> None:
    """In any company, padded on either side, with the end-of-text token for padding; there and back."""
    from transformers import AutoModelForSequenceClassification

    decoder = empty_decoder(trials(name)[label]).to_empty(device="cpu")
    redraw(decoder, 1)
    scorer, family = scorer_of(decoder, 3), families.by_name(name)
    save_scored(tmp_path / "ours", family, scorer, None, {"eos_token_id": 7}, ("x", "y", "z"), pad_token_id=7)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()) and theirs.config.id2label == {0: "x", 1: "y", 2: "z"}
    ids, mask = padded([[1, 2, 3], [9], [4, 5, 6, 8, 9, 10, 11, 12]], 7, side)
    kwargs: dict[str, Any] = {"attention_mask": mask.long()}
    if side == "left" and name in ("gpt", "gpt2", "gpt_neo", "gpt_j", "gpt_neox"):
        kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = theirs.eval()(input_ids=ids, **kwargs).logits
        found = scorer.scores(scorer.reading(ids, mask), last_real(mask))
    assert found.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_scored(tmp_path / "theirs")
    assert back.labels == ("x", "y", "z")
    with torch.no_grad():
        again = back.decoder.scores(back.decoder.reading(ids, mask), last_real(mask))
    torch.testing.assert_close(again, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "problem", "said"),
    [
        (1, None, None),
        (1, "regression", None),
        (3, "regression", "'regression' with 3 labels"),
        (3, "multi_label_classification", "'multi_label_classification' with 3 labels"),
    ],
)
def test_scores_of_transformers_mean_what_they_do_there(
    labels: int, problem: str | None, said: str | None, tmp_path: Path
) -> None:
    """One score is a number, also where problem_type is not set; what no answer could tell is refused."""
    model = speaking()
    keys = {} if problem is None else {"problem_type": problem}
    names = tuple(f"LABEL_{number}" for number in range(labels))
    scorer = scorer_of(model.decoder, labels)
    save_scored(tmp_path, model.family, scorer, model.tokenizer, model.config, names, **keys)
    if said is not None:
        with pytest.raises(DaybreakError, match=said):
            load_task_model(tmp_path)
        return
    found = load_task_model(tmp_path)
    answer = next(answers(found, [Item(("A day",))]))
    assert found.numbers and answer.probability is None
    assert answer.scores["LABEL_0"] == pytest.approx(found.score([Item(("A day",))])[0].item())


def padded(texts: list[list[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), pad)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if side == "left" else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), True
    return ids, mask


@given(some.lists(some.lists(some.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=4))
def test_the_last_real_token_wherever_the_padding_stands(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    assert last_real(mask).tolist() == [5 - row[::-1].index(True) for row in rows]


def test_what_is_tuned_here_is_read_there(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    given = settings(rows(tmp_path / "rows.jsonl"), head="last", steps=4)
    tuned(tmp_path / "run", given)
    ours = load_task_model(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["A cruel day", "A lovely one, is it not?", "So"]
    with torch.no_grad():
        wanted = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    found = torch.stack(ours.score([Item((text,)) for text in texts]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}


# Runs ----------------------------------------------------------


def tuned(folder: Path, given: TaskSettings) -> TuningOutcome:
    return tune(job_of(speaking(), given), given, folder, Silent())


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_learned_kept_and_used(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path / "rows.jsonl", 80)
    given = settings(file, task, optimizer={"lr": 1e-2}, epochs=6, language=0.0, batch={"micro": 8})
    outcome = tuned(tmp_path / "run", given)
    names = {"similarity": "pearson"}.get(task, "accuracy")
    assert outcome.scores[names] > 0.5
    model = load_task_model(tmp_path / "run" / "model")
    assert model.layout.task == task and model.layout.behind
    texts = {"classification": ["A kind day"], "choice": ["A kind day", "lovely 3", "awful 3"]}
    command = ["classify", str(tmp_path / "run" / "model")]
    assert main.run([*command, *texts.get(task, ["A kind day", "A lovely one"]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"label", "probability", "scores"}
    assert (told["probability"] is None) == (task == "similarity")
    assert main.run([*command, "--file", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 80


def test_held_out_figures_are_those_of_the_folder(tmp_path: Path) -> None:
    given = settings(rows(tmp_path / "rows.jsonl", 80), optimizer={"lr": 3e-3})
    outcome = tuned(tmp_path / "run", given)
    job = job_of(speaking(), given)
    model = load_task_model(tmp_path / "run" / "model")
    hidden = [model.states(list(one.sequences)) for one in job.held_out]
    right = 0
    for (states, _, last), one in zip(hidden, job.held_out, strict=True):
        right += int(model.scores(states[0, last], [1]).argmax() == one.label)
    assert right / len(job.held_out) == pytest.approx(outcome.scores["accuracy"])


def test_adapters_leave_all_but_the_new_parts(tmp_path: Path) -> None:
    given = settings(rows(tmp_path / "rows.jsonl", 40), steps=2, lora={"rank": 2})
    job = job_of(speaking(), given)
    tune(job, given, tmp_path / "run", Silent())
    trained = {name for name, one in job.modules.named_parameters() if one.requires_grad}
    plain = {name for name in trained if "adapters" not in name}
    assert plain == {"scorer.head.weight", "scorer.tokens.weight"}
    assert load_task_model(tmp_path / "run" / "model").labels == ("bad", "good")


def test_an_adapter_of_a_head_that_is_trained_anyway_is_refused(tmp_path: Path) -> None:
    given = settings(rows(tmp_path / "rows.jsonl", 20), lora={"rank": 2, "targets": ["attention", "head"]})
    job = job_of(speaking("gpt_j", positions=Rotary(4, "neighbours")), given)
    with pytest.raises(DaybreakError, match=r"the head gives 2 scores.*leave head out"):
        tune(job, given, tmp_path / "run", Silent())


def test_a_class_that_chance_kept_apart_is_learned(tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.jsonl", 60)
    rare = next(text for n in range(100) if draw("held out", text := f"rare {n}") < 0.2 * 2**64)
    with file.open("a") as handle:
        for mood in ("odd", "good"):
            handle.write(json.dumps({"text": rare, "mood": mood}) + "\n")
    job = job_of(speaking(), settings(file))
    assert job.model.labels == ("bad", "good", "odd") and job.held_out
    assert {one.where.rpartition(" ")[2] for one in job.examples} >= {"61", "62"}, "a text is on both sides"
    other = rows(tmp_path / "other.jsonl", 9, mood="odd")
    with pytest.raises(DaybreakError, match="'odd' does not occur in the rows to learn from"):
        job_of(speaking(), settings(rows(tmp_path / "rows.jsonl"), data={"validation": str(other)}))


def test_the_command_shows_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speaking().save(tmp_path / "base")
    file = rows(tmp_path / "rows.jsonl", 20)
    command = ["finetune", str(tmp_path / "base"), str(file), "--text", "text"]
    compared = ["--text", "other", "--task", "similarity", "--label", "alike"]
    assert main.run([*command, *compared, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "[start]A " in shown and "[delimiter]A " in shown and shown.count("[extract]") == 2
    command += ["--out", str(tmp_path / "run"), "--steps", "1"]
    assert main.run([*command, "--label", "mood", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["held_out"]) >= {"accuracy", "f1", "matthews"}
    assert main.run([*command, "--label", "moood", "--dry-run"]) == 2
    assert "line 1 has nothing in column 'moood' (did you mean 'mood'?)" in capsys.readouterr().err


# Files and figures ---------------------------------------------


def test_an_empty_cell_is_no_missing_column(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,stars\nfine,1\nbad,\n")
    with pytest.raises(DaybreakError, match="line 3 has nothing in column 'stars'; fill it in or remove"):
        read_items(file, Columns("classification", ("text",), "stars"))


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        (
            {"a": "x"},
            Columns("classification", ("a",), "b"),
            "line 1 has nothing in column 'b'.*columns are a",
        ),
        ({"a": "x", "b": None}, Columns("classification", ("a",), "b"), "nothing in column 'b'; fill it in"),
        ({"a": "", "b": 1}, Columns("classification", ("a",), "b"), "line 1: a is ''; give a text"),
        ({"a": "x", "b": [1]}, Columns("classification", ("a",), "b"), "the label is .*word or a number"),
        ({"a": "x", "b": float("nan")}, Columns("classification", ("a",), "b"), "the label is nan; give"),
        ({"a": "x", "b": 1, "c": "y"}, Columns("choice", ("a",), "b", ("c",)), "must hold a list of options"),
        ({"a": "x", "b": 1, "c": ["y"]}, Columns("choice", ("a",), "b", ("c",)), "1 option to choose from"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], columns: Columns, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DaybreakError, match=said):
        read_items(file, columns)


def test_columns_fit_the_task() -> None:
    with pytest.raises(DaybreakError, match=r"entailment reads 2 texts, and 1 columns.*twice"):
        Columns("entailment", ("a",))
    with pytest.raises(DaybreakError, match="choice needs the columns of its options"):
        Columns("choice", ("a",))
    with pytest.raises(DaybreakError, match="has no options"):
        Columns("classification", ("a",), options=("b", "c"))


def test_files_of_every_kind(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["text", "label"], ["one, two", "1"], ["three", "0"]])
    with (tmp_path / "long.csv").open("w") as handle:
        csv.writer(handle).writerows([["text", "label"], ["long " * 40_000, "1"]])
    long = read_items(tmp_path / "long.csv", Columns("classification", ("text",), "label"))
    assert len(long[0].texts[0]) == 200_000
    found = read_items(tmp_path / "a.csv", Columns("classification", ("text",), "label"))
    assert [(item.texts, item.label) for item in found] == [(("one, two",), "1"), (("three",), "0")]
    assert classes_of(found) == ("0", "1")


def item(label: Any, options: tuple[str, ...] = ()) -> Item:
    return Item(("x",), options, label, "here")


def test_labels_are_classes_or_numbers() -> None:
    halves = [item(0.5), item("1"), item(2)]
    assert kind_of(halves, "similarity", "auto") == "numbers"
    assert kind_of(halves, "classification", "auto") == "classes"
    assert kind_of([item(1), item("0")], "similarity", "auto") == "classes"
    assert kind_of([item("yes")], "similarity", "auto") == "classes"
    assert classes_of([item(10), item(2.0), item("b"), item(True and "a")]) == ("2", "10", "a", "b")
    with pytest.raises(DaybreakError, match="nothing to learn"):
        classes_of([item("a"), item("a")])
    with pytest.raises(DaybreakError, match=r"40 different labels in 40 rows.*--data\.labels numbers"):
        classes_of([item(n) for n in range(40)])


def test_the_right_option_by_column_text_or_number() -> None:
    columns = Columns("choice", ("x",), "y", ("a", "b"))
    for label, first, right in (("b", 0, 1), ("sun", 0, 0), (1, 0, 1), ("1", 1, 0), (2, 1, 1)):
        assert right_option(item(label, ("sun", "moon")), columns, first) == right
    with pytest.raises(DaybreakError, match=r"none of 2 options.*--data\.first 1"):
        right_option(item(2, ("sun", "moon")), columns, 0)


def test_options_that_are_numbers_themselves() -> None:
    """A label that counts is not taken for another option's text, wherever the file tells the two apart."""
    columns, values = Columns("choice", ("x",), "y", ("c",)), ("0", "30", "3", "10")
    counts = [item(3, values), item(0, values)]
    assert are_counted(counts, 0) and not are_counted([*counts, item(30, values)], 0)
    assert right_option(counts[0], columns, 0, counted=True) == 3
    lines = [item("3", values), item("1", values)]  # as CSV has them; of the second no option is the text
    assert are_counted(lines, 0) and not are_counted(lines[:1], 0)
    assert right_option(lines[0], columns, 0, counted=True) == 3
    assert right_option(lines[0], columns, 0) == 2
    assert not are_counted([item("a", ("a", "b"))], 0)
    with pytest.raises(DaybreakError, match="none of 4 options"):
        right_option(item("²", values), columns, 0)


def test_options_count_where_the_file_says_so(tmp_path: Path) -> None:
    lines = [
        {"text": f"q {n}", "c": ["0", "30", "3", "10"], "right": right} for n, right in enumerate([3, 0])
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = job_of(speaking(), settings(file, "choice", data={"choices": ["c"], "held_out": 0.0}))
    assert [one.label for one in job.examples] == [3, 0]


def test_choices_without_a_context_are_held_out_too() -> None:
    items = [Item((), (f"a {n}", f"b {n}"), 0) for n in range(200)]
    learned, held_out = apart(items, 0.1)
    assert 5 < len(held_out) < 40 and len(learned) + len(held_out) == 200


def test_figures_as_written_out() -> None:
    predicted, labels = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1])
    found = agreement.of_classes(predicted, labels, 2)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    several = agreement.of_classes(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]), 4)
    assert several["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    many = torch.arange(300_000.0)
    assert agreement.of_numbers(many, many**0.5)["spearman"] == pytest.approx(1)
    numbers = agreement.of_numbers(torch.tensor([1.0, 2.0, 2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert numbers["spearman"] == pytest.approx(0.9486833)  # ranks 1, 2.5, 2.5, 4
    ours = torch.corrcoef(torch.tensor([[1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]]))[0, 1].item()
    assert numbers["pearson"] == pytest.approx(ours)
    assert agreement.of_numbers(torch.ones(3), torch.arange(3.0))["pearson"] == 0.0


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    model = speaking()
    model.save(tmp_path)
    with pytest.raises(DaybreakError, match="holds no scores"):
        load_task_model(tmp_path)
    assert daybreak.load(tmp_path).tokenizer is not None
