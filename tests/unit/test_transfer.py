"""ULMFiT's runs: rates, unfreezing, windows with a carried state, resuming, classifiers, and wrong input."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from daybreak import families
from daybreak.cli.main import run as command
from daybreak.errors import DaybreakError
from daybreak.recurrent_model import RecurrentModel, create_recurrent, load_recurrent
from daybreak.settings import build
from daybreak.text.words import Words
from daybreak.train.stop import Stop
from daybreak.transfer import run as runs
from daybreak.transfer.classify import Classifier, ClassifyTask, padded
from daybreak.transfer.language import LanguageTask, score
from daybreak.transfer.loop import Loop
from daybreak.transfer.schedule import discriminative, slanted_triangle, stages, thawed
from daybreak.transfer.settings import ClassifySettings, LanguageSettings
from daybreak.transfer.texts import Text, classes, majority, numbers, read_texts
from daybreak.transfer.vocabulary import moved, shared

PAGE = next(families.recurrents())
SMALL = {"width": 10, "hidden": 14, "layers": 2}
FILL = ["the", "cat", "sat", "on", "a", "mat", "and", "it", "was", "so", "very", "near", "to", "us", "all"]


class Quiet:
    speaks = False

    def phase(self, name: str) -> None: ...

    def point(self, point: Any) -> None: ...

    def say(self, line: str) -> None: ...

    def quiet(self) -> None: ...


def made(count: int, seed: int) -> list[Text]:
    """Texts that a word tells apart."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        label = draw.choice(["good", "bad"])
        words = [draw.choice(FILL) for _ in range(draw.randint(4, 30))]
        for place in draw.sample(range(len(words)), 3):
            words[place] = {"good": "lovely", "bad": "awful"}[label]
        found.append(Text(" ".join(words), label, f"made: line {number + 1}"))
    return found


def written(file: Path, texts: Sequence[Text]) -> str:
    with file.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["text", "label"])
        rows.writerows((one.text, one.label) for one in texts)
    return str(file)


def model(texts: Sequence[Text], seed: int = 1, **changes: Any) -> RecurrentModel:
    words = Words.learn((text.text for text in texts), PAGE, least_count=1)
    return create_recurrent(PAGE, None, seed, words, **{**SMALL, **changes})


# Rates


def test_the_slanted_triangle_is_equation_3() -> None:
    """Where the number of steps makes the paper's cut a whole number, its formula to the letter."""
    for steps in (10, 50, 300):
        cut = steps // 10
        for step in range(steps):
            share = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / 0.1 - 1))
            assert slanted_triangle(step, steps) == pytest.approx((1 + share * 31) / 32)
    assert slanted_triangle(0, 100) == pytest.approx(1 / 32)
    assert slanted_triangle(10, 100) == 1.0
    assert slanted_triangle(99, 100) == pytest.approx(1 / 32 + 31 / 32 / 90)


@given(st.integers(1, 500), st.floats(0.01, 0.9), st.floats(1.0, 100.0))
def test_the_slanted_triangle_rises_falls_and_stays_above_its_floor(
    steps: int, cut: float, ratio: float
) -> None:
    """Also where the paper's formula, with a cut that is no whole number of steps, would go below 0."""
    rates = [slanted_triangle(step, steps, cut, ratio) for step in range(steps)]
    assert all(1 / ratio - 1e-12 <= rate <= 1 + 1e-12 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(1.0)


def test_each_layer_learns_slower_than_the_one_above() -> None:
    rates = discriminative(0.01, 4)
    assert rates[-1] == 0.01
    assert [after / before for before, after in itertools.pairwise(rates)] == pytest.approx([2.6] * 3)


def test_unfreezing_goes_from_the_head_down() -> None:
    assert [list(thawed(epoch, 4)) for epoch in range(6)] == [
        [3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3],
    ]  # fmt: skip
    assert stages(6, 4, gradual=True) == [range(0, 1), range(1, 2), range(2, 3), range(3, 6)]
    assert stages(2, 4, gradual=True) == [range(0, 1), range(1, 2)]
    assert stages(6, 4, gradual=False) == [range(6)]


# Language models


def language_task(**settings: Any) -> LanguageTask:
    texts = made(40, seed=2)
    own = {"batch": 4, "window": 8, "epochs": 2, **settings}
    return LanguageTask(model(texts), texts, texts[:5], build(LanguageSettings, own))


def test_a_windows_state_is_the_next_ones_start() -> None:
    """The losses of two windows are those of both read at once, where nothing is dropped."""
    task = language_task(dropout=0, activation=0, slowness=0)
    losses = [task.loss(step)[0].item() for step in (0, 1)]
    both = task._rows[:, : 2 * 8 + 1]
    read = task.model(both[:, :-1])
    whole = torch.nn.functional.cross_entropy(
        task.model.unembed(read.raw).flatten(0, 1), both[:, 1:].flatten()
    )
    assert sum(losses) / 2 == pytest.approx(whole.item(), rel=1e-5)


def test_every_token_is_predicted_once_in_an_epoch_but_the_rest_of_the_last_row() -> None:
    task = language_task()
    total = sum(map(len, task._texts))
    seen = sum(task.loss(step)[1] for step in range(task.epoch_steps))
    assert seen == 4 * (total // 4 - 1)


def test_the_penalties_are_part_of_the_loss() -> None:
    plain, with_both = language_task(dropout=0, activation=0, slowness=0), language_task(dropout=0)
    assert with_both.loss(0)[0].item() > plain.loss(0)[0].item()


@given(st.integers(0, 5), st.integers(1, 30))
@hypothesis_settings(max_examples=10, deadline=None)
def test_the_score_is_that_of_each_text_alone(seed: int, count: int) -> None:
    texts = made(count, seed)
    one = model(made(30, 1))
    together, alone = score(one, texts), [score(one, [text]) for text in texts]
    assert together.nats == pytest.approx(sum(found.nats for found in alone), rel=1e-5)
    assert together.tokens == sum(found.tokens for found in alone)
    assert together.unknown == sum(found.unknown for found in alone)
    own = one.logits(torch.tensor([one.tokenizer.encode(texts[0].text)]))[0].log_softmax(-1)
    ids = one.tokenizer.encode(texts[0].text)
    nats = -sum(own[place, token].item() for place, token in enumerate(ids[1:]))
    assert alone[0].nats == pytest.approx(nats, rel=1e-4)
    figures = together.figures()
    size = sum(len(text.text.encode()) for text in texts)
    assert figures["bits_per_byte"] == pytest.approx(together.nats / 0.6931471805599453 / size)


def test_a_backward_model_reads_from_the_end() -> None:
    texts = made(10, 3)
    forward, backward = model(texts), model(texts, direction="backward")
    backward.decoder.load_state_dict(forward.decoder.state_dict())
    ids = forward.tokenizer.encode(texts[0].text)
    logits = forward.logits(torch.tensor([ids[::-1]]))[0].log_softmax(-1)
    nats = -sum(logits[place, token].item() for place, token in enumerate(ids[::-1][1:]))
    assert score(backward, texts[:1]).nats == pytest.approx(nats, rel=1e-4)
    with pytest.raises(DaybreakError, match="from their end"):
        backward.generate(["the cat"])


# Runs


def settings_of(folder: Path, **own: Any) -> Mapping[str, Any]:
    texts = folder / "texts.csv"
    if not texts.exists():
        written(texts, made(60, seed=4))
        written(folder / "held_out.csv", made(20, seed=5))
    data = {"files": [str(texts)], "held_out": [str(folder / "held_out.csv")]}
    return {"data": data, "batch": 8, "window": 12, "checkpoints": {"every": 7}, **own}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_recurrent(folder)
    return {**dict(found.decoder.state_dict()), **{f"head.{name}": one for name, one in found.head.items()}}


class StopAt(Stop):
    """Asks for the end when it is looked at for the n-th time."""

    def __init__(self, times: int) -> None:
        self.left, self.signal = times, None

    @property
    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0

    @asked.setter
    def asked(self, value: bool) -> None: ...


def interrupted(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    import contextlib

    monkeypatch.setattr(runs, "stop_on_signals", lambda: contextlib.nullcontext(StopAt(steps)))


@pytest.mark.parametrize("kind", ["language", "classes"])
def test_a_run_that_was_ended_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ended in the middle of an epoch, with a state that is carried on, and while layers are frozen."""
    if kind == "language":
        own = settings_of(tmp_path, changes=SMALL, epochs=2, least_count=1)
        settings, learn = build(LanguageSettings, own), runs.learn_language
    else:
        model(made(60, 4)).save(tmp_path / "start")
        own = settings_of(tmp_path, start=str(tmp_path / "start"), epochs=5, inner=6)
        settings, learn = build(ClassifySettings, own), runs.learn_classes
    whole = learn(settings, tmp_path / "whole", Quiet())
    assert whole.ending == "finished" and whole.exported is not None
    for steps in (5, 4):
        with monkeypatch.context() as patched:
            interrupted(patched, steps)
            ended = learn(settings, tmp_path / "parts", Quiet())
            assert ended.ending == "stopped" and ended.exported is None
    finished = learn(settings, tmp_path / "parts", Quiet())
    assert finished.step == whole.step and finished.scores == whole.scores
    one, other = weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_weights_on_held_out_texts_are_exported(tmp_path: Path) -> None:
    own = settings_of(tmp_path, changes=SMALL, epochs=3, least_count=1, lr=0.02)
    done = runs.learn_language(build(LanguageSettings, own), tmp_path / "run", Quiet())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [found["loss"] for line in lines if (found := _held_out(json.loads(line))) is not None]
    assert len(losses) == 3 and done.scores["loss"] == pytest.approx(min(losses), rel=1e-6)


def _held_out(line: Mapping[str, Any]) -> Mapping[str, float] | None:
    for value in line.values():
        if isinstance(value, dict) and "held out" in value:
            return value["held out"]  # type: ignore[no-any-return]
    return None


def test_another_setting_or_other_texts_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings_of(tmp_path, changes=SMALL, least_count=1)
    interrupted(monkeypatch, 4)
    runs.learn_language(build(LanguageSettings, own), tmp_path / "run", Quiet())
    with pytest.raises(DaybreakError, match=r"a run with lr 0\.004, not 0\.1"):
        runs.learn_language(build(LanguageSettings, {**own, "lr": 0.1}), tmp_path / "run", Quiet())
    written(tmp_path / "texts.csv", made(60, seed=9))
    with pytest.raises(DaybreakError, match="not those that this run was started with"):
        runs.learn_language(build(LanguageSettings, own), tmp_path / "run", Quiet())


def test_rates_of_a_language_model_by_layer() -> None:
    task = language_task(lr=0.1, factor=2.0)
    peak = max(range(task.steps), key=lambda step: task.rates(step)[-1] or 0)
    assert task.rates(peak) == pytest.approx([0.025, 0.05, 0.1])
    every = {id(one) for group in task.groups() for one in group}
    assert every == {id(one) for one in task.model.parameters()}


# Classifiers


def class_task(**settings: Any) -> ClassifyTask:
    texts = made(40, seed=6)
    own = {"batch": 8, "window": 12, "epochs": 6, "inner": 6, **settings}
    return ClassifyTask(model(texts), texts, texts[:9], build(ClassifySettings, own))


def test_layers_thaw_one_by_one_and_frozen_ones_stay_as_they_are(tmp_path: Path) -> None:
    task = class_task(checkpoints={"every": 1000})
    groups, quiet = task.groups(), _Records()
    loop = Loop(task, tmp_path, quiet)  # type: ignore[arg-type]
    for epoch in range(4):
        before = [[one.detach().clone() for one in group] for group in groups]
        loop.train(StopAt(task.epoch_steps))
        assert loop.progress.step == (epoch + 1) * task.epoch_steps
        same = [
            all(torch.equal(a, b) for a, b in zip(old, group, strict=True))
            for old, group in zip(before, groups, strict=True)
        ]
        assert same == [group < len(groups) - 1 - epoch for group in range(len(groups))]
        assert all(rate is None for rate in task.rates(epoch * task.epoch_steps)[: len(groups) - 1 - epoch])


class _Records:
    """Notes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def test_a_classifier_learns_what_tells_the_texts_apart(tmp_path: Path) -> None:
    own = settings_of(tmp_path, changes=SMALL, epochs=2, least_count=1, lr=0.02)
    runs.learn_language(build(LanguageSettings, own), tmp_path / "language", Quiet())
    start = str(tmp_path / "language" / "model")
    own = settings_of(tmp_path, start=start, epochs=10, lr=0.03, dropout=0.1, inner=8, head_dropout=0.0)
    done = runs.learn_classes(build(ClassifySettings, own), tmp_path / "classes", Quiet())
    assert done.scores["accuracy"] >= 0.9
    found = load_recurrent(tmp_path / "classes" / "model")
    texts = read_texts([tmp_path / "held_out.csv"], label="label")
    assert Classifier([found]).evaluate(texts) == pytest.approx(dict(done.scores))
    with pytest.raises(DaybreakError, match="is a classifier"):
        found.generate(["the cat"])


def test_an_ensemble_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    pair = []
    for direction in ("forward", "backward"):
        texts = made(40, seed=6)
        own = build(ClassifySettings, {"batch": 8, "inner": 6})
        task = ClassifyTask(model(texts, direction=direction), texts, [], own)
        task.save(tmp_path / direction)
        pair.append(load_recurrent(tmp_path / direction))
    texts = made(7, seed=8)
    alone = [Classifier([one]).probabilities(texts) for one in pair]
    assert torch.allclose(Classifier(pair).probabilities(texts), (alone[0] + alone[1]) / 2)
    assert not torch.allclose(alone[0], alone[1])
    pair[1].config["labels"] = ["good", "bad"]
    with pytest.raises(DaybreakError, match="different classes"):
        Classifier(pair)
    with pytest.raises(DaybreakError, match="no classifier"):
        Classifier([model(texts)])


def test_batches_hold_texts_of_similar_length_and_each_text_once() -> None:
    task = class_task(batch=4)
    batches = task._shuffled(0)
    held = [place for batch in batches for place in batch]
    assert sorted(held) == list(range(40)) and all(len(batch) == 4 for batch in batches)
    assert batches == task._shuffled(0) != task._shuffled(1)
    tokens, lengths = padded([[3, 4, 5], [6]])
    assert tokens.tolist() == [[3, 4, 5], [6, 0, 0]] and lengths.tolist() == [3, 1]


def test_fresh_weights_to_compare_with() -> None:
    start = class_task()
    fresh = class_task(pretrained=False, seed=3)
    assert not torch.equal(start.model.encoder.tokens.weight, fresh.model.encoder.tokens.weight)
    assert fresh.model.encoder.shape == start.model.encoder.shape


# Vocabularies


def test_words_keep_their_rows_and_new_ones_begin_at_the_mean() -> None:
    before = model([Text("the cat sat on the mat", None, "")])
    with torch.no_grad():
        before.decoder.head_bias.normal_()
    words = Words.learn(["a cat sat down"], PAGE, least_count=1)
    after = moved(before, words)
    old = {word: number for number, word in enumerate(before.tokenizer.words)}
    assert shared(before, words) == len(PAGE.specials) + 2
    for number, word in enumerate(words.words):
        row, bias = after.decoder.tokens.weight[number], after.decoder.head_bias[number]
        if word in old:
            assert torch.equal(row, before.decoder.tokens.weight[old[word]])
            assert torch.equal(bias, before.decoder.head_bias[old[word]])
        else:
            assert torch.allclose(row, before.decoder.tokens.weight.mean(0))
            assert torch.allclose(bias, before.decoder.head_bias.mean())
    for name, one in before.decoder.layers.named_parameters():
        assert torch.equal(one, after.decoder.layers.get_parameter(name))


# Wrong input


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "txt,label\nhello,x\n",
            r"a\.csv: line 2 has no 'text' \(did you mean 'txt'\?\).*with --column",
        ),
        ("a.csv", "text,label\nhello,x\n,y\n", r"a\.csv: line 3 has no 'text'; fill it in or remove"),
        (
            "a.jsonl",
            '{"text": "  ", "label": "x"}\n',
            r"a\.jsonl: line 1 has nothing but blanks under 'text'",
        ),
        ("a.jsonl", '{"text": "x"}\n', r"line 1 has no 'label'.*with --label"),
        ("a.jsonl", '{"text": ["x"], "label": "y"}\n', r"line 1 has a list under 'text'"),
        ("a.csv", "text,label\n", "there is no text in"),
        ("a.txt", "hello", "no columns"),
        ("a.doc", "hello", "no known kind"),
    ],
)
def test_files_that_lack_something(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DaybreakError, match=message):
        read_texts([tmp_path / name], label="label")


def test_classes_that_make_no_classifier() -> None:
    texts = [Text("x", "a", "f: line 2"), Text("y", "a", "f: line 3")]
    with pytest.raises(
        DaybreakError, match="all 2 texts have the class 'a'; a classifier needs texts of two"
    ):
        classes(texts)
    with pytest.raises(
        DaybreakError, match=r"f: line 3 has the class 'a'.*which no text of the training had"
    ):
        numbers(texts[1:], ["b", "c"])
    with pytest.raises(DaybreakError, match="name their column"):
        classes([Text("x", None, "")])
    assert majority([*texts, Text("z", "b", "")], texts) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("own", "message"),
    [({"epochs": 0}, "epochs is 0"), ({"cut": 1.0}, "cut is 1"), ({"lr": 0}, "lr is 0"),
     ({"dropout": -1}, "dropout is -1"), ({"dropout": 9}, "dropout of")],
)  # fmt: skip
def test_settings_that_make_no_sense(own: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        LanguageTask(model(made(5, 1)), made(5, 1), [], build(LanguageSettings, own))


@pytest.mark.parametrize(
    ("own", "message"),
    [({"batch": 1}, "batch is 1; it must be at least 2"), ({"inner": 0}, "inner is 0"),
     ({"longest": 0}, "longest is 0"), ({"head_dropout": 1.5}, "head_dropout is 1.5"),
     ({"weight_decay": -1}, "weight_decay is -1"), ({"clip": 0}, "clip is 0.0; it must be above 0")],
)  # fmt: skip
def test_settings_of_a_classifier_that_make_no_sense(own: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        build(ClassifySettings, own)


# Commands


def test_the_commands_from_texts_to_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_of(tmp_path)
    texts, held_out = str(tmp_path / "texts.csv"), str(tmp_path / "held_out.csv")
    language, tuned, classed = (str(tmp_path / name) for name in ("language", "tuned", "classes"))
    few = ["--batch", "8", "--window", "12", "--epochs", "1"]
    shape = ["--changes", "{width: 10, hidden: 14, layers: 2}", "--least-count", "1"]
    assert command(["ulmfit", "pretrain", "--texts", texts, "--out", language, *few, *shape]) == 0
    start = f"{language}/model"
    given = ["--texts", texts, "--held-out", held_out]
    assert command(["ulmfit", "finetune", start, *given, "--out", tuned, *few]) == 0
    assert "held out: loss" in capsys.readouterr().out
    assert command(["ulmfit", "classify", f"{tuned}/model", *given, "--out", classed, "--json", *few]) == 0
    assert json.loads(capsys.readouterr().out)["ending"] == "finished"
    assert command(["ulmfit", "evaluate", f"{tuned}/model", "--texts", held_out]) == 0
    assert "bits per byte" in capsys.readouterr().out
    both = [f"{classed}/model", f"{classed}/model"]
    assert command(["ulmfit", "evaluate", *both, "--texts", held_out, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"loss", "accuracy", "error"}
    assert command(["ulmfit", "predict", *both[:1], "--texts", held_out]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 20 and {line["label"] for line in lines} <= {"good", "bad"}
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)
    assert command(["generate", f"{tuned}/model", "the cat", "-m", "4", "-t", "1", "--seed", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "--out", "x", "--texts", "a.csv"], "name the model to start from"),
        (["finetune", "nowhere", "--texts", "a.csv", "--out", "x"], "no folder of an LSTM"),
        (["pretrain", "--out", "x"], "--texts"),
        (["pretrain", "--texts", "a.csv"], "--out"),
        (["pretrain", "--texts", "a.csv", "--out", "x", "--epoch", "3"], "did you mean 'epochs'"),
    ],
)
def test_commands_that_lack_something(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text\nhello there\n")
    assert command(["ulmfit", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
