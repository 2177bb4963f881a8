"""Supervised fine-tuning: what is learned, how it is read, and what comes of it."""

from __future__ import annotations

import json
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as some

import daybreak
from daybreak import settings as reading
from daybreak.align.sft import Sft, apart, batch_of, job_of, packed, taught
from daybreak.align.sft_settings import SftData, SftSettings
from daybreak.architecture import Rotary
from daybreak.cli import main
from daybreak.data.conversations import Demonstration
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.objectives.batch import token_losses
from daybreak.objectives.summed import scored_loss_sum
from daybreak.text.answers import Lesson
from daybreak.train.tuning import means
from daybreak.train.tuning_run import TuningOutcome, tune
from tests.unit.test_conversations import TALK
from tests.unit.test_reward_training import with_blanks
from tests.unit.tiny_run import Silent, byte_tokenizer, steps
from tests.unit.tiny_training import VOCABULARY, model_of

FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("gpt", "gpt2", "gpt_neo", "opt", "bloom")},
    "gpt_j": {"positions": Rotary(4, "neighbours")},
    "gpt_neox": {"positions": Rotary(2)},
    "llama": {"positions": Rotary(6), "key_heads": 2},
}


def base(**changes: Any) -> LanguageModel:
    model = model_of(**{"vocabulary": 257, "context": 96, **changes})
    model.tokenizer = byte_tokenizer()
    return model


def written(file: Path, count: int = 24) -> Path:
    talks = [
        [
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"It is {n}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ]
        for n in range(count)
    ]
    file.write_text(
        "".join(json.dumps({"messages": talk[: 2 + 2 * (n % 2)]}) + "\n" for n, talk in enumerate(talks))
    )
    return file


def settings(file: Path, **tree: Any) -> SftSettings:
    base = {
        "start": "x",
        "data": {"file": str(file), "held_out": 0.2},
        "optimizer": {"lr": 3e-3},
        "batch": {"examples": 4, "micro": 2},
        "checkpoints": {"every": 3},
    }
    return reading.build(SftSettings, reading.merged(base, tree))


def drawn(lengths: list[int], seed: int = 0) -> list[Lesson]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        tokens = torch.randint(0, VOCABULARY, (length,), generator=draw).tolist()
        first = int(torch.randint(1, length, (), generator=draw))
        end = int(torch.randint(first + 1, length + 1, (), generator=draw))
        found.append(Lesson(array("i", tokens), ((first, end),)))
    return found


def alone(model: LanguageModel, lesson: Lesson) -> torch.Tensor:
    """The loss of a lesson, written out."""
    logits = model.decoder.logits(torch.tensor([list(lesson.tokens)]))[0].log_softmax(-1)
    total = torch.zeros(())
    for first, end in lesson.answers:
        for place in range(first, end):
            total = total - logits[place - 1, lesson.tokens[place]]
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_rows_is_that_of_their_lessons_alone(family: str) -> None:
    """Packed or not, with the gradient."""
    model, lessons = model_of(family, **FAMILIES[family]), drawn([12, 3, 5, 9, 4, 7, 2])
    wanted = sum((alone(model, one) for one in lessons), torch.zeros(()))
    wanted.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: one.grad.clone() for name, one in model.decoder.named_parameters() if one.grad is not None
    }
    for packing in (True, False):
        model.decoder.zero_grad()
        job = Sft(model, lessons, packing=packing)
        parts = list(job.parts(lessons, 2))
        assert packing == any(len(row) > 1 for part in parts for row in part)
        scored = [job.loss(part) for part in parts]
        total = torch.stack([one.loss for one in scored]).sum()
        torch.testing.assert_close(total, wanted, rtol=1e-6, atol=1e-6)
        assert sum(one.count for one in scored) == sum(one.predicted for one in lessons)
        total.backward()  # type: ignore[no-untyped-call]
        for name, one in model.decoder.named_parameters():
            if one.grad is not None:
                torch.testing.assert_close(one.grad, gradients[name], rtol=1e-4, atol=1e-5)


@given(some.lists(some.integers(2, 12), min_size=1, max_size=12))
@how(max_examples=40, deadline=None)
def test_rows_hold_every_lesson_once_and_are_no_longer_than_the_longest(lengths: list[int]) -> None:
    lessons = drawn(lengths)
    rows = packed(lessons)
    assert sorted(map(id, (one for row in rows for one in row))) == sorted(map(id, lessons))
    assert all(sum(len(one.tokens) for one in row) <= max(lengths) for row in rows)
    for place, row in enumerate(rows):  # none would have fitted into an earlier row, as it was then
        for one in row:
            longer = [[len(b.tokens) for b in before if len(b.tokens) >= len(one.tokens)] for before in rows]
            assert all(sum(longer[earlier]) + len(one.tokens) > max(lengths) for earlier in range(place))


def test_many_lessons_are_packed_at_once() -> None:
    """Those held out stand in one part."""
    lessons = [Lesson(array("i", range(length)), ((1, 2),)) for length in (3, 4)] * 10_000
    began = time.process_time()
    assert len(packed(lessons)) == 20_000
    assert time.process_time() - began < 2


@given(some.lists(some.integers(2, 12), min_size=1, max_size=6), some.booleans())
@how(max_examples=40, deadline=None)
def test_targets_are_the_answers_tokens_one_place_earlier(lengths: list[int], packing: bool) -> None:
    lessons = drawn(lengths)
    rows = packed(lessons) if packing else [[one] for one in lessons]
    batch = batch_of(model_of(), rows)
    for place, row in enumerate(rows):
        begin, wanted = 0, dict[int, int]()
        for one in row:
            for first, end in one.answers:
                wanted.update({begin + n - 1: one.tokens[n] for n in range(first, end)})
            begin += len(one.tokens)
        found = {n: t for n, t in enumerate(batch.targets[place].tolist()) if t != -100}
        assert found == wanted


def test_the_loss_of_few_places_is_the_loss() -> None:
    for family in ("gpt2", "gpt_j"):  # the head is the embedding, and has a matrix and a bias of its own
        model = model_of(family, **FAMILIES[family])
        batch = batch_of(model, [[one] for one in drawn([9, 5, 7])])
        wanted = token_losses(model.decoder, batch).sum()
        torch.testing.assert_close(scored_loss_sum(model.decoder, batch), wanted, rtol=1e-6, atol=1e-6)
        model.decoder.requires_grad_(False)
        torch.testing.assert_close(scored_loss_sum(model.decoder, batch), wanted, rtol=1e-6, atol=1e-6)


def test_too_long_examples_are_cut_or_left_out_and_counted() -> None:
    model = base(context=64)
    rows = [
        Demonstration((), ("short ", "text")),
        Demonstration((), ("short ", "x" * 100)),
        Demonstration((), ("long " * 30, "text")),
    ]
    cut = taught(model, rows, SftData())
    assert [len(one.tokens) for one in cut.lessons] == [11, 64]
    assert (cut.cut, cut.left_out) == (1, 1) and cut.lessons[1].answers == ((6, 64),)
    left = taught(model, rows, SftData(longer="leave_out", context=32))
    assert [len(one.tokens) for one in left.lessons] == [11] and left.left_out == 2
    assert "2 too long and left out" in left.told(32)
    with pytest.raises(DaybreakError, match=r"has 107 tokens, more than 64; .*--data\.longer"):
        taught(model, rows, SftData(longer="refuse"))


def test_what_would_help_is_told_where_nothing_is_left(tmp_path: Path) -> None:
    for longer, told in (("cut", "no answer begins within 8 tokens"), ("leave_out", "set --data.longer cut")):
        data = {"file": str(written(tmp_path / "a.jsonl")), "context": 8, "longer": longer}
        with pytest.raises(DaybreakError, match=told):
            job_of(base(), reading.build(SftSettings, {"data": data}))


def test_a_group_of_maps_needs_no_brackets() -> None:
    words = ["--lora.rank", "8", "--lora.targets", "attention"]  # as docs/finetuning.md has it
    lora = reading.build(SftSettings, reading.from_words(words)).lora
    assert lora is not None and lora.targets == ("attention",)


def test_settings_alone_are_not_taken_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("start: mine\ndata: {file: talks.jsonl}\n")
    printed = ["--print-config", "--json"]
    assert main.run(["align", "sft", "--config", str(file), "--epochs", "2", *printed]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["start"], told["data"]["file"], told["epochs"]) == ("mine", "talks.jsonl", 2.0)
    assert (
        main.run(["align", "sft", "other", "--config", str(file), "--epochs=2", "--seed", "3", *printed]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["start"], told["data"]["file"], told["epochs"]) == ("other", "talks.jsonl", 2.0)
    for command in (["align", "sft"], ["align", "dpo"], ["align", "reward"], ["align", "ppo"], ["finetune"]):
        assert main.run([*command, "--kl.beta", "1", "start", "talks.jsonl", "--out", "x"]) == 2
        assert (
            "'start' stands behind settings; name model and data before --kl.beta" in capsys.readouterr().err
        )


def test_a_text_ends_with_the_token_that_ends_texts() -> None:
    model = base()
    (lesson,) = taught(
        model, [Demonstration((), ("Say <|endoftext|>", " <|endoftext|>!"))], SftData()
    ).lessons
    eos = model.tokenizer.eos_id  # type: ignore[union-attr]
    ((first, end),) = lesson.answers
    assert list(lesson.tokens[first:end]).count(eos) == 1 and lesson.tokens[end - 1] == eos


def test_a_completion_has_the_blanks_that_it_has() -> None:
    model = base()
    model.tokenizer = tokenizer = with_blanks("normalizer")
    rows = [Demonstration((), ("one two", text)) for text in (" three", "three")]
    found = taught(model, rows, SftData()).lessons
    for row, lesson in zip(rows, found, strict=True):
        assert row.text is not None
        assert list(lesson.tokens) == [*tokenizer.encode("".join(row.text), bos=True), tokenizer.eos_id]


def test_no_question_stands_on_both_sides() -> None:
    rows = [Demonstration(({"role": "user", "content": f"{n % 40}"}, TALK[1])) for n in range(400)]
    training, held_out = apart(rows, 0.3)
    asked = [{row.messages[0]["content"] for row in side} for side in (training, held_out)]
    assert not asked[0] & asked[1] and len(training) + len(held_out) == 400
    assert 40 < len(held_out) < 220
    assert apart(rows[:1], 0.999)[0] == rows[:1]


def tuned(folder: Path, given: SftSettings) -> tuple[Sft, TuningOutcome]:
    job = job_of(base(), given)
    return job, tune(job, given, folder, Silent())


def test_answers_are_learned_and_written(tmp_path: Path) -> None:
    file, answers = tmp_path / "rows.jsonl", {"Red?": "Warm.", "Blue?": "Cold."}
    rows = [{"instruction": asked, "output": answer} for asked, answer in answers.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = settings(
        file, epochs=200, data={"held_out": 0.0}, checkpoints={"every": 99}, optimizer={"lr": 1e-2}
    )
    _, outcome = tuned(tmp_path / "run", given)
    assert steps(tmp_path / "run")[outcome.steps]["loss"] < 0.1
    model = daybreak.load(tmp_path / "run" / "model")
    for asked, answer in answers.items():
        told = model.chat([{"role": "user", "content": asked}], temperature=0, max_new_tokens=20)
        assert "".join(told).strip() == answer
        assert told.result.finish_reason == "stop"
    assert model.tokenizer is not None and "chat_template.jinja" in model.tokenizer.files


def test_transformers_reads_the_same_prompt(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from daybreak.engine.chat import prompt

    tuned(tmp_path / "run", settings(written(tmp_path / "talks.jsonl", 8), steps=1))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ids = theirs.apply_chat_template(TALK[:1], add_generation_prompt=True)["input_ids"]
    assert list(ids) == prompt(daybreak.load(tmp_path / "run" / "model"), TALK[:1])


def test_held_out_answers_are_scored_and_a_run_goes_on(tmp_path: Path) -> None:
    given = settings(written(tmp_path / "talks.jsonl"))
    job, outcome = tuned(tmp_path / "run", given)
    assert job.held_out and outcome.scores["loss"] > 0
    _, second = tuned(tmp_path / "run", given)
    assert second.step == outcome.step and second.loss is None
    assert second.scores["loss"] == pytest.approx(outcome.scores["loss"], rel=1e-5)
    other = settings(written(tmp_path / "other.jsonl", 30), epochs=3)
    with pytest.raises(DaybreakError, match=r"data\.file"):
        tuned(tmp_path / "run", other)


def test_packing_changes_no_step(tmp_path: Path) -> None:
    file = written(tmp_path / "talks.jsonl")
    for packing in (True, False):
        tuned(tmp_path / str(packing), settings(file, steps=4, data={"packing": packing, "held_out": 0.0}))
    one, other = steps(tmp_path / "True"), steps(tmp_path / "False")
    for step in range(1, 5):
        assert one[step]["loss"] == pytest.approx(other[step]["loss"], rel=1e-5)
        assert one[step]["tokens"] == other[step]["tokens"]


def test_a_model_without_an_end_of_text_is_refused_before_hours_are_spent(tmp_path: Path) -> None:
    model = base()
    assert model.tokenizer is not None
    model.tokenizer.eos_id = None
    with pytest.raises(DaybreakError, match=r"names no token that ends a text.*name one"):
        job_of(model, settings(written(tmp_path / "talks.jsonl")))
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DaybreakError, match="names no token"):
        job_of(model, settings(file))


def test_tokens_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    model = base()
    model.tokenizer = byte_tokenizer(("<|user|>",))
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "<|user|>", "completion": "b"}\n')
    with pytest.raises(DaybreakError, match=r"line 2: the token '<\|user\|>' has id 257, .* 0 to 256"):
        job_of(model, settings(file))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base().save(tmp_path / "base")
    file, start = written(tmp_path / "talks.jsonl"), str(tmp_path / "base")
    assert main.run(["align", "sft", start, str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "learned" in shown and "' It is 0.<|endoftext|>'" in shown
    assert main.run(["align", "sft", start, str(file), "--dry-run", "--json"]) == 0
    pieces = json.loads(capsys.readouterr().out)["pieces"]
    assert [piece["learned"] for piece in pieces] == [False, True]
    run = ["align", "sft", start, str(file), "--out", str(tmp_path / "run")]
    assert main.run([*run, "--steps", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ending"] == "finished" and Path(told["model"]).is_dir()
    assert main.run([*run, "--optimizer.lrr", "1"]) == 2
    assert "did you mean 'lr'" in capsys.readouterr().err
    assert main.run(["align", "sft", start, str(file)]) == 2
    assert "--out" in capsys.readouterr().err
    assert main.run(["align", "sft", "--print-config"]) == 0
    assert "# How often each example is read" in capsys.readouterr().out
    assert means([]) == {"loss": 0.0}
