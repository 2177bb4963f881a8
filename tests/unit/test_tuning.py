"""The loop that fine-tuning, reward models and preferences share."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given as examples_of
from hypothesis import settings as how
from hypothesis import strategies as some

import daybreak
from daybreak.errors import DaybreakError
from daybreak.objectives.batch import Batch, loss
from daybreak.train.tuning import Scored, Tuning
from daybreak.train.tuning_run import tune
from daybreak.train.tuning_state import TuningCourse, TuningState
from tests.unit.tiny_run import Silent, lines, steps
from tests.unit.tiny_training import model_of
from tests.unit.tiny_tuning import Text, Texts, settings, texts, tuned


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(daybreak.load(folder).decoder.named_parameters())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killed(BaseException):
    """As if the process had ended."""


class Interrupted(Texts):
    """Ends after so many calls of `loss`, without a word."""

    left = 10**9

    def loss(self, part: Sequence[Text]) -> Scored:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().loss(part)


def interrupted(left: int) -> Interrupted:
    job = Interrupted(model_of(), texts(10), texts(4, seed=1))
    job.left = left
    return job


def test_a_run_leaves_what_a_pretraining_run_leaves(tmp_path: Path) -> None:
    outcome = tuned(tmp_path / "run", settings())
    assert outcome.ending == "finished" and outcome.step == outcome.steps == 8  # 30 examples, 4 a step
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names >= {
        "settings.yaml",
        "run.json",
        "metrics.jsonl",
        "logbook.md",
        "checkpoints",
        "best",
        "model",
    }
    told = steps(tmp_path / "run")
    assert list(told) == list(range(1, 9))
    assert all(values["ones"] == 1 for values in told.values())
    assert told[8]["loss"] < told[1]["loss"]
    assert told[8]["tokens"] == 3 * sum(map(len, texts(10)))
    scores = [line["evaluation"]["held out"]["loss"] for line in lines(tmp_path / "run", "evaluation")]
    assert outcome.scores["loss"] == pytest.approx(min(scores), rel=1e-6)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert "held out" in (tmp_path / "run" / "logbook.md").read_text()


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been(tmp_path: Path, optimizer: str) -> None:
    given = settings(optimizer={"name": optimizer}, evaluation={"every": 3})
    tuned(tmp_path / "whole", given)
    for left in (3, 5, 6, 1, 7):  # calls of `loss` until the end; the second half of a step among them
        with pytest.raises(Killed):
            tuned(tmp_path / "killed", given, interrupted(left))
    tuned(tmp_path / "killed", given)
    assert steps(tmp_path / "whole") == steps(tmp_path / "killed")
    assert lines(tmp_path / "whole", "evaluation") == lines(tmp_path / "killed", "evaluation")
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model"))
    assert len(lines(tmp_path / "killed", "session")) > 3, "it never got beyond a checkpoint"


class Signalled(Texts):
    """Gets SIGTERM while its eighth loss is computed: behind two steps and an evaluation."""

    calls = 0

    def loss(self, part: Sequence[Text]) -> Scored:
        self.calls += 1
        if self.calls == 8:
            signal.raise_signal(signal.SIGTERM)
        return super().loss(part)


def test_a_signal_ends_a_run_behind_a_checkpoint(tmp_path: Path) -> None:
    given = settings(checkpoints={"every": 100})
    tuned(tmp_path / "whole", given)
    stopped = tuned(tmp_path / "run", given, Signalled(model_of(), texts(10), texts(4, seed=1)))
    assert (stopped.ending, stopped.signal, stopped.step) == ("stopped", signal.SIGTERM, 3)
    assert stopped.exported is None and not (tmp_path / "run" / "model").exists()
    assert tuned(tmp_path / "run", given).ending == "finished"
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "run" / "model"))


def test_how_a_step_is_divided_changes_nothing(tmp_path: Path) -> None:
    """Texts of different lengths: a mean of means would be another number."""
    without = {"dropout": {"residual": 0.0, "embedding": 0.0, "attention": 0.0}, "steps": 1}
    first = {}
    for micro in (1, 2, 4):
        tuned(tmp_path / str(micro), settings(batch={"examples": 4, "micro": micro}, **without))
        first[micro] = steps(tmp_path / str(micro))[1]
    for name in ("loss", "gradient_norm"):
        assert first[1][name] == pytest.approx(first[4][name], rel=1e-6)
        assert first[2][name] == pytest.approx(first[4][name], rel=1e-6)


def test_the_gradient_is_that_of_the_mean_per_token(tmp_path: Path) -> None:
    job = Texts(model_of(), texts(3))
    given = settings(dropout={"residual": 0.0, "embedding": 0.0, "attention": 0.0}, batch={"micro": 2})
    state = TuningState(job.modules, given, 3, tmp_path, print)
    Tuning(job, given, state, None)._gradient(job.examples)  # type: ignore[arg-type]
    found = {name: one.grad.clone() for name, one in job.modules.named_parameters() if one.grad is not None}
    job.modules.zero_grad()
    total, count = torch.zeros(()), sum(len(text) - 1 for text in job.examples)
    for text in job.examples:
        tokens = torch.tensor([text])
        batch = Batch(job.model.decoder.reading(tokens[:, :-1]), tokens[:, 1:])
        total = total + loss(job.model.decoder, batch) * (len(text) - 1) / count
    total.backward()  # type: ignore[no-untyped-call]
    for name, one in job.modules.named_parameters():
        assert one.grad is not None
        torch.testing.assert_close(found[name], one.grad, rtol=1e-4, atol=1e-7)


class Broken(Texts):
    """Its third loss is no number."""

    calls = 0

    def loss(self, part: Sequence[Text]) -> Scored:
        self.calls += 1
        scored = super().loss(part)
        return Scored(scored.loss * math.nan, 1, 1) if self.calls == 5 else scored


def test_a_loss_that_is_no_number_moves_nothing(tmp_path: Path) -> None:
    job = Broken(model_of(), texts(10))
    given = settings(checkpoints={"every": 1})
    with pytest.raises(DaybreakError, match=r"loss of step 3 is nan.*was not taken"):
        tuned(tmp_path / "run", given, job)
    after = {name: one.detach().clone() for name, one in job.modules.named_parameters()}
    assert all(bool(one.isfinite().all()) for one in after.values())
    tuned(tmp_path / "two", settings(steps=2, checkpoints={"every": 1}, schedule={"name": "constant"}))
    assert "failed" in (tmp_path / "run" / "run.json").read_text()


def test_the_best_weights_are_exported(tmp_path: Path) -> None:
    """Held-out texts that the training ones contradict more with every step."""
    job = Texts(model_of(), [(1, 2, 3, 4)] * 8, [(1, 3, 2, 4)] * 2)
    given = settings(epochs=8, evaluation={"every": 1}, optimizer={"lr": 0.02})
    outcome = tuned(tmp_path / "run", given, job)
    losses = [line["evaluation"]["held out"]["loss"] for line in lines(tmp_path / "run", "evaluation")]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert best < len(losses) - 1, "the case is too easy"
    assert outcome.best_step == best + 1
    assert outcome.scores["loss"] == pytest.approx(losses[best], rel=1e-5)
    model = daybreak.load(tmp_path / "run" / "model")
    again = Texts(model, [(1, 2)], job.held_out)
    again.modules.eval()
    assert again.score(2)["loss"] == pytest.approx(losses[best], rel=1e-5)


def test_the_last_weights_are_exported_where_that_is_asked_for(tmp_path: Path) -> None:
    job = Texts(model_of(), [(1, 2, 3, 4)] * 8, [(1, 3, 2, 4)] * 2)
    given = settings(epochs=4, evaluation={"every": 1, "best": False}, optimizer={"lr": 0.02})
    outcome = tuned(tmp_path / "run", given, job)
    assert outcome.best_step is None
    assert (
        outcome.scores["loss"] == lines(tmp_path / "run", "evaluation")[-1]["evaluation"]["held out"]["loss"]
    )


def test_what_is_frozen_stays_and_is_in_no_checkpoint(tmp_path: Path) -> None:
    job = Texts(model_of(), texts(6))
    for name, one in job.modules.named_parameters():
        one.requires_grad = name.startswith("blocks.1")
    before = {name: one.detach().clone() for name, one in job.modules.named_parameters()}
    tuned(tmp_path / "run", settings(), job)
    for name, one in job.modules.named_parameters():
        assert torch.equal(one, before[name]) == (not name.startswith("blocks.1")), name
    kept = json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/numbers.json")).read_text())
    assert "optimizer" not in kept["values"] or all("blocks.1" in name for name in kept["values"])


@how(max_examples=60, deadline=None)
@examples_of(some.integers(1, 40), some.integers(1, 9), some.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_each_epoch_reads_each_example_once(size: int, batch: int, epochs: float) -> None:
    given = settings(epochs=epochs, batch={"examples": batch})
    course = TuningCourse(given, size)

    class State:
        pass

    state = State()
    state.course = course  # type: ignore[attr-defined]
    job = Texts(model_of(), [(number,) for number in range(size)])
    tuning = Tuning(job, given, state, None)  # type: ignore[arg-type]
    read = [number for step in range(course.steps) for number in tuning.numbers(step)]
    assert len(read) == max(1, round(epochs * size))
    for first in range(0, len(read) - size + 1, size):
        assert sorted(read[first : first + size]) == list(range(size))
    assert max(Counter(read).values()) <= math.ceil(epochs)


@pytest.mark.parametrize("steps, last", [(1, 5), (3, 5), (4, 2), (5, 5), (9, 5)])
def test_steps_are_whole_unless_the_epochs_end_there(steps: int, last: int) -> None:
    course = TuningCourse(settings(epochs=1, steps=steps, batch={"examples": 5}), 17)
    assert course.steps == steps and course.examples == (steps - 1) * 5 + last


def test_orders_differ_by_epoch_and_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        given = settings(seed=seed, epochs=2, batch={"examples": 20})

        class State:
            course = TuningCourse(given, 20)

        tuning = Tuning(Texts(model_of(), texts(20)), given, State, None)  # type: ignore[arg-type]
        return tuning.numbers(epoch)

    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0) and order(0, 0) == order(0, 0)


def test_dropout_is_drawn_while_training_and_never_else() -> None:
    from daybreak.model.dropout import add_dropout

    tokens = torch.arange(8)[None]
    plain = model_of().decoder.eval().logits(tokens)
    for name in ("residual", "embedding", "attention"):
        decoder = model_of().decoder
        add_dropout(decoder, **{name: 0.5})
        assert torch.equal(decoder.eval().logits(tokens), plain), name
        torch.manual_seed(0)
        first = decoder.train().logits(tokens)
        assert not torch.equal(first, decoder.logits(tokens)), name
        torch.manual_seed(0)
        assert torch.equal(first, decoder.logits(tokens)), name


def test_another_run_or_other_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tuned(tmp_path / "run", settings(), interrupted(9))
    with pytest.raises(DaybreakError, match=r"optimizer\.lr 0\.003, not 0\.1.*--out"):
        tuned(tmp_path / "run", settings(optimizer={"lr": 0.1}))
    with pytest.raises(DaybreakError, match=r"examples are not those"):
        tuned(tmp_path / "run", settings(), Texts(model_of(), texts(10, seed=5), texts(4, seed=1)))
    tuned(tmp_path / "run", settings(checkpoints={"every": 4}))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.tex").write_text("work")
    with pytest.raises(DaybreakError, match="is no run"):
        tuned(tmp_path / "thesis", settings())


def test_no_example_is_said(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match="no example"):
        tune(Texts(model_of(), []), settings(), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_adapters_are_trained_kept_and_merged(tmp_path: Path) -> None:
    """The folder holds what the adapter makes of the model, and the adapter alone does the same."""
    before = {name: one.clone() for name, one in model_of().decoder.named_parameters()}
    given = settings(lora={"rank": 2, "dropout": 0.1}, optimizer={"lr": 0.05})
    tuned(tmp_path / "whole", given)
    job = interrupted(9)
    with pytest.raises(Killed):
        tuned(tmp_path / "killed", given, job)
    base = {name: one for name, one in job.modules.named_parameters() if ".adapters." not in name}
    assert same(base, before), "only the adapter is trained"
    tuned(tmp_path / "killed", given)
    assert steps(tmp_path / "whole") == steps(tmp_path / "killed")
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model"))
    model, tokens = model_of(), torch.arange(9)[None]
    plain = model.logits(tokens)
    model.load_adapter(tmp_path / "whole" / "adapter", "mine")
    merged = daybreak.load(tmp_path / "whole" / "model").logits(tokens)
    torch.testing.assert_close(model.logits(tokens), merged, rtol=1e-5, atol=1e-5)
    assert (merged - plain).abs().max() > 0.01


def test_an_adapter_that_could_not_be_merged_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=r"lora\.targets: the head and the token embedding are one"):
        tuned(tmp_path / "run", settings(lora={"targets": ["attention", "head"]}))
