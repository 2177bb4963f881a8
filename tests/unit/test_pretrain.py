"""`daybreak pretrain`: runs of a few seconds, from settings to a folder that others open."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import daybreak
from daybreak import families
from daybreak.checkpoint.opened import open_folder
from daybreak.data.loader import Loader
from daybreak.data.token_shards import TokenSet
from daybreak.errors import DaybreakError
from daybreak.train import session as sessions
from daybreak.train.replay import replay
from daybreak.train.session import Session
from tests.unit.tiny_run import CONTEXT, Silent, data_set, lines, settings, steps, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("data"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return daybreak.load(folder / "model").decoder.state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_learns_and_leaves_an_ordinary_folder(data: Path, tmp_path: Path) -> None:
    given = settings(data, length="80 steps", evaluation={"every": 40, "prompts": ["the old"]})
    outcome = trained(tmp_path, given)
    assert (outcome.ending, outcome.step, outcome.steps) == ("finished", 80, 80)
    losses = [values["loss"] for values in steps(tmp_path).values()]
    assert losses[0] == pytest.approx(math.log(320), abs=0.5)  # 257 entries, rounded up to 320
    assert sum(losses[-5:]) / 5 < 3.2
    scores = lines(tmp_path, "evaluation")
    assert [values["step"] for values in scores] == [40, 80]
    assert set(scores[0]["evaluation"]) == {"north", "south", "all"}
    assert scores[1]["evaluation"]["all"]["loss"] < scores[0]["evaluation"]["all"]["loss"]
    assert [values["sample"]["prompt"] for values in lines(tmp_path, "sample")] == ["the old"] * 2
    model = daybreak.load(tmp_path / "model")
    assert model.generate("the old", max_new_tokens=4)[0].text
    assert open_folder(tmp_path / "model").family.name == "gpt2"


def test_transformers_opens_what_it_leaves(data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained(tmp_path, settings(data, length="5 steps"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("the red house", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = theirs(ids).logits
    assert (daybreak.load(tmp_path / "model").logits(ids) - expected).abs().max() < 1e-5


def test_bits_per_byte_of_the_whole_split_are_those_of_its_tokens(data: Path, tmp_path: Path) -> None:
    """One byte is one token here, and every document has a separator more."""
    given = settings(data, length="20 steps", evaluation={"every": 20, "sequences": 10**6})
    trained(tmp_path, given)
    found = lines(tmp_path, "evaluation")[0]["evaluation"]["north"]
    per_token = found["loss"] / math.log(2)
    assert per_token < found["bits_per_byte"] < 1.05 * per_token


INTERRUPTED = {
    "adamw": {},
    "muon": {"optimizer": {"name": "muon"}},
    "bfloat16": {"precision": {"dtype": "bfloat16"}},
    "float16": {"precision": {"dtype": "float16", "loss_scale": 2.0**20, "loss_scale_window": 5}},
    "average": {"ema": 0.9},
    "masked": {"data": {"masking": True}, "evaluation": {"every": 20}},
    "growing batch": {"batch": {"ramp_from": 2, "ramp_over": "20 steps"}},
    "recomputed": {"precision": {"recompute": True}},
    "shrunk": {"optimizer": {"embedding_shrink": 0.1}},
    "foreground": {"checkpoints": {"background": False}},
}


@pytest.mark.parametrize("tree", INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_a_stopped_run_goes_on_bit_for_bit(tree: dict[str, Any], data: Path, tmp_path: Path) -> None:
    given = settings(data, **tree)
    trained(tmp_path / "alone", given)
    assert stopped_after(17, tmp_path / "stopped", given).step == 17
    outcome = trained(tmp_path / "stopped", given)
    assert outcome.ending == "finished" and outcome.step == 40
    assert steps(tmp_path / "stopped") == steps(tmp_path / "alone")
    assert same(tmp_path / "stopped", tmp_path / "alone")


def stopped_after(step: int, folder: Path, given: Any) -> Any:
    """The run gets SIGTERM in that step."""
    original = Session._advance

    def advance(self: Session, *arguments: Any) -> None:
        original(self, *arguments)
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_advance", advance)
        outcome = trained(folder, given)
    assert outcome.ending == "stopped" and outcome.signal == signal.SIGTERM
    return outcome


def test_a_finished_run_is_not_trained_again_and_can_be_made_longer(data: Path, tmp_path: Path) -> None:
    given = settings(data, length="10 steps", schedule={"name": "constant"})
    trained(tmp_path, given)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert trained(tmp_path, given).loss is None
    assert len(steps(tmp_path)) == 10 and before in (tmp_path / "metrics.jsonl").read_text()
    trained(tmp_path, settings(data, length="15 steps", schedule={"name": "constant"}))
    assert len(steps(tmp_path)) == 15
    story = (tmp_path / "logbook.md").read_text(encoding="utf-8")
    assert "`length`: 10 steps → 15 steps" in story


@pytest.mark.parametrize(
    "tree, named",
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"model": {"changes": {"layers": 3}}}, "model.changes.layers 2, not 3"),
        ({"optimizer": {"name": "muon"}}, "optimizer.name 'adamw', not 'muon'"),
        ({"data": {"weights": {"north": 2, "south": 1}}}, "data.weights"),
        ({"batch": {"sequences": 8}}, "batch.sequences 4, not 8"),
    ],
)
def test_another_run_is_not_mistaken_for_this_one(
    tree: dict[str, Any], named: str, data: Path, tmp_path: Path
) -> None:
    trained(tmp_path, settings(data, length="3 steps"))
    with pytest.raises(DaybreakError, match=named):
        trained(tmp_path, settings(data, length="6 steps", **tree))


def test_other_data_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    given = settings(data_set(tmp_path / "data"), length="3 steps")
    trained(tmp_path / "run", given)
    data_set(tmp_path / "data", documents=299)
    with pytest.raises(DaybreakError, match="the data is not what this run was started with"):
        trained(tmp_path / "run", settings(tmp_path / "data", length="6 steps"))


def test_a_folder_of_something_else_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DaybreakError, match="is no run"):
        trained(tmp_path, settings(data))
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == ["thesis.tex"]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(data: Path, tmp_path: Path) -> None:
    given = settings(data)
    trained(tmp_path / "alone", given)
    stopped_after(17, tmp_path / "run", given)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert newest.name == "step-00000017"
    victim = max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    screen = Silent()
    trained(tmp_path / "run", given, screen)
    assert any("step-00000017 is damaged" in line and victim.name in line for line in screen.lines)
    story = (tmp_path / "run" / "logbook.md").read_text(encoding="utf-8")
    assert "step-00000017 is damaged" in story and "goes on from the checkpoint of step 14" in story
    assert steps(tmp_path / "run") == steps(tmp_path / "alone")


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_is_intact(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(data)
    trained(tmp_path / "alone", given)

    def full(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        original = Session.save

        def save(self: Session) -> None:
            if self.progress.step == 14:
                patch.setattr("daybreak.train.checkpoint_files.write_tensors", full)
            original(self)

        patch.setattr(Session, "save", save)
        with pytest.raises(DaybreakError, match=r"(?s)No space left.*the checkpoint of step 7 is intact"):
            trained(tmp_path / "run", given)
    trained(tmp_path / "run", given)
    assert steps(tmp_path / "run") == steps(tmp_path / "alone")
    assert "No space left" in (tmp_path / "run" / "logbook.md").read_text(encoding="utf-8")


class Spikes:
    """Makes the gradients of some steps worse: all infinite, or the loss a hundredfold."""

    def __init__(self, patch: pytest.MonkeyPatch, bad: dict[int, str]) -> None:
        self.positions: dict[int, int] = {}
        original = sessions.gradient

        def gradient(decoder: Any, loss_of: Any, parts: Any, world: Any, step: int, scale: Any) -> Any:
            first = int(parts[0].reading.tokens[0, 0]), int(parts[0].reading.tokens.sum())
            key = hash(first)
            if step in bad and self.positions.setdefault(step, key) == key:  # it is the data's fault
                kind = bad[step]
                factor = math.nan if kind == "nan" else 100.0

                def worse(decoder: Any, batch: Any) -> Any:
                    return loss_of(decoder, batch) * factor

                return original(decoder, worse, parts, world, step, scale)
            return original(decoder, loss_of, parts, world, step, scale)

        patch.setattr(sessions, "gradient", gradient)


@pytest.mark.parametrize("policy", ["log", "skip", "roll_back"])
def test_what_is_no_number_never_reaches_the_weights(
    policy: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spikes(monkeypatch, {12: "nan"})
    trained(tmp_path, settings(data, watch={"policy": policy}, ema=0.9))
    assert all(torch.isfinite(one).all() for one in weights(tmp_path).values())
    found = steps(tmp_path)
    assert found[12]["event"] == "not finite" and found[12]["loss"] is None
    story = (tmp_path / "logbook.md").read_text(encoding="utf-8")
    assert "### Step 12: not finite" in story and ".txt`, place" in story


def test_a_spike_is_taken_logged_or_skipped_as_the_policy_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spikes(monkeypatch, {30: "spike"})
    last, schedule = {}, {"warmup": "2 steps", "decay": "30 steps"}
    for policy in ("log", "skip"):
        folder = tmp_path / policy
        watch = {"policy": policy, "warmup": 5}
        trained(folder, settings(data, length="30 steps", schedule=schedule, watch=watch))
        assert steps(folder)[30]["event"] == "loss spike"
        last[policy] = weights(folder)
    trained(tmp_path / "before", settings(data, length="29 steps", schedule=schedule))
    assert same(tmp_path / "skip", tmp_path / "before")
    assert not same(tmp_path / "log", tmp_path / "before")


def test_a_roll_back_leaves_out_the_data_and_lowers_the_rate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spikes(monkeypatch, {30: "spike"})
    watch = {"policy": "roll_back", "warmup": 5, "back": 5, "lr_factor": 0.5}
    trained(tmp_path, settings(data, schedule={"name": "constant", "warmup": "0 steps"}, watch=watch))
    found = steps(tmp_path)
    assert sorted(found) == list(range(1, 41))
    assert found[21]["position"] == 80
    # Back to the checkpoint of step 21, and on behind the batch of step 30.
    assert found[22]["position"] == 30 * 4 and found[40]["position"] == (30 + 18) * 4
    assert found[21]["lr"] == 3e-3 and found[22]["lr"] == 1.5e-3
    assert [line["rolled_back"]["from"] for line in lines(tmp_path, "rolled_back")] == [30]
    story = (tmp_path / "logbook.md").read_text(encoding="utf-8")
    assert "back from step 30 to the checkpoint of step 21" in story
    assert "Sequences 84 to 119 are not read again" in story


def test_the_documents_of_any_step_are_listed(data: Path, tmp_path: Path) -> None:
    trained(tmp_path, settings(data, seed=3, data={"weights": {"north": 3, "south": 1}}))
    loader = Loader(TokenSet.open(data), CONTEXT, 3, {"north": 3, "south": 1})
    for step in (1, 17, 40):
        found = replay(tmp_path, step)
        assert found.sequences == range(4 * (step - 1), 4 * step)
        assert found.documents == loader.documents(found.sequences)


def test_a_run_that_was_rolled_back_goes_on_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(data, watch={"policy": "roll_back", "warmup": 5, "back": 5})
    for folder, bad in (("alone", {30: "spike"}), ("stopped", {30: "spike"})):
        with monkeypatch.context() as patch:
            Spikes(patch, bad)
            if folder == "stopped":
                stopped_after(28, tmp_path / folder, given)  # too late to learn anew what is usual
            trained(tmp_path / folder, given)
    assert steps(tmp_path / "stopped") == steps(tmp_path / "alone")
    assert same(tmp_path / "stopped", tmp_path / "alone")


@pytest.mark.parametrize("family", families.NAMES)
def test_every_family_is_trained_saved_and_opened_again(family: str, tmp_path: Path) -> None:
    page = families.by_name(family)
    data = data_set(tmp_path / "data", documents=60, marks=tuple(page.blank_tokens.values()))
    changes: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4}
    if page.base.blanks is not None:
        changes["context"] = 2 * CONTEXT
    model = {"family": family, "changes": changes}
    trained(tmp_path / "run", settings(data, length="12 steps", model=model, evaluation={"every": 12}))
    found = steps(tmp_path / "run")
    assert len(found) == 12 and all(math.isfinite(values["loss"]) for values in found.values())
    model_folder = tmp_path / "run" / "model"
    assert open_folder(model_folder).family.name in (family, "gpt_neo" if family == "gpt3" else family)
    assert lines(tmp_path / "run", "evaluation")


def test_a_run_can_begin_from_a_checkpoint(data: Path, tmp_path: Path) -> None:
    trained(tmp_path / "first", settings(data, length="30 steps"))
    start = {"model": {"start": str(tmp_path / "first" / "model"), "family": "gpt2", "changes": {}}}
    given = settings(data, length="2 steps")
    given = daybreak.settings.build(type(given), {**daybreak.settings.to_tree(given), **start})
    trained(tmp_path / "second", given)
    first, second = steps(tmp_path / "first"), steps(tmp_path / "second")
    assert second[1]["loss"] == pytest.approx(first[30]["loss"], abs=0.4)


def test_data_of_another_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", settings(data, length="2 steps"))
    model = daybreak.load(tmp_path / "run" / "model")
    from daybreak.text.train_tokenizer import train_tokenizer

    model.tokenizer = train_tokenizer(["the sun rose, and then the sun set again"] * 9, 262)
    model.save(tmp_path / "other")
    given = settings(data, model={"start": str(tmp_path / "other")})
    given = daybreak.settings.build(
        type(given),
        {**daybreak.settings.to_tree(given), "model": {"start": str(tmp_path / "other")}},
    )
    with pytest.raises(DaybreakError, match="another tokenizer"):
        trained(tmp_path / "second", given)


@pytest.mark.parametrize(
    "tree, named",
    [
        ({"objective": "spans"}, "has no blanks"),
        ({"objective": "masked"}, "objective is 'masked'"),
        ({"data": {"context": 64}, "model": {"changes": {"context": 32}}}, "table of positions ends at 32"),
        ({"data": {"weights": {"nroth": 1}}}, "north"),
        ({"model": {"changes": {"vocabulary": 100}}}, "257 entries, the model 100"),
        ({"model": {"family": "glm"}}, "does not know"),
    ],
)
def test_what_does_not_fit_is_named(tree: dict[str, Any], named: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=named):
        trained(tmp_path / "run", settings(data, **tree))


def test_options_of_the_optimizer_that_change_take_effect(data: Path, tmp_path: Path) -> None:
    given = settings(data)
    for name in ("changed", "as before"):
        stopped_after(20, tmp_path / name, given)
    trained(tmp_path / "as before", given)
    trained(tmp_path / "changed", settings(data, optimizer={"weight_decay": 50.0, "beta2": 0.5}))
    before, after = steps(tmp_path / "as before"), steps(tmp_path / "changed")
    assert after[20] == before[20] and after[21]["loss"] == before[21]["loss"]
    assert after[30]["loss"] != before[30]["loss"]
    sizes = [weights(tmp_path / name)["tokens.weight"].norm() for name in ("changed", "as before")]
    assert sizes[0] < 0.9 * sizes[1]


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float16", "float32")])
def test_the_loss_scale_follows_the_dtype(dtypes: tuple[str, str], data: Path, tmp_path: Path) -> None:
    for number, dtype in enumerate(dtypes):
        given = settings(data, length=f"{10 + 10 * number} steps", precision={"dtype": dtype})
        trained(tmp_path, given)
    scales = [values["loss_scale"] for values in steps(tmp_path).values()]
    expected = {"float32": None, "float16": 65536.0}
    assert scales[0] == expected[dtypes[0]] and scales[10] == expected[dtypes[1]]


def test_the_average_forgets_the_fresh_weights(data: Path, tmp_path: Path) -> None:
    given = settings(data, length="60 steps", ema=0.999, evaluation={"every": 60})
    trained(tmp_path, given)
    live, averaged = (line["evaluation"]["all"]["loss"] for line in lines(tmp_path, "evaluation"))
    assert averaged == pytest.approx(live, abs=0.5) and averaged != live


def test_float16_keeps_small_gradients() -> None:
    """A step of many tokens divides each token's gradient by their number: not before it is computed."""
    from daybreak.objectives.causal import Causal
    from daybreak.objectives.summed import loss_sum
    from daybreak.train.precision import in_dtype
    from daybreak.train.step import Scale, gradient
    from daybreak.train.world import World

    world, batch = World.alone(torch.device("cpu")), Causal().batch(torch.randint(0, 300, (2, 17)))
    found = {}
    for dtype, scale in ((torch.float32, None), (torch.float16, Scale(8.0, 32))):
        model = daybreak.create("gpt2", vocabulary=300, context=16, layers=2, width=32, heads=2)
        gradient(model.decoder, in_dtype(loss_sum, dtype), [batch] * 200, world, 1, scale)
        found[dtype] = model.decoder.get_parameter("blocks.0.attention.query.weight").grad
    difference = (found[torch.float16] - found[torch.float32]).norm() / found[torch.float32].norm()
    assert difference < 0.02


def test_a_roll_back_without_a_good_checkpoint_is_a_skip(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spikes(monkeypatch, {30: "spike"})
    original = Session._roll_back

    def damaged(self: Session, *arguments: Any) -> bool:
        self.checkpoints.wait()
        for file in (tmp_path / "checkpoints").glob("step-*/*.distcp"):
            if file.parent.name != "step-00000028":
                file.write_bytes(b"")
        return original(self, *arguments)

    monkeypatch.setattr(Session, "_roll_back", damaged)
    outcome = trained(tmp_path, settings(data, watch={"policy": "roll_back", "warmup": 5, "back": 5}))
    assert outcome.ending == "finished" and not lines(tmp_path, "rolled_back")
    assert "the batch is skipped" in (tmp_path / "logbook.md").read_text(encoding="utf-8")


def test_damaged_data_is_refused_when_a_run_begins(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data")
    shard = data / "training" / "north" / "00000.tokens"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(DaybreakError, match=r"00000\.tokens is damaged"):
        trained(tmp_path / "run", settings(data))


def test_what_a_recipe_needs_is_told_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    from daybreak.cli.main import run

    assert run(["pretrain", "--recipe", "pythia-14m", "--dry-run", "--json"]) == 0
    assert '"parameters": 14067712' in capsys.readouterr().out
