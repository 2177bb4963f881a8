"""Adapters on weights of few bits, by the commands' settings: what is trained, what is told, what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import daybreak
from daybreak import settings as reading
from daybreak.align import preference_training, reward_training, sft
from daybreak.align.preference_settings import PreferenceSettings, RewardSettings
from daybreak.align.reward_model import load_reward_model
from daybreak.align.sft_settings import SftSettings
from daybreak.cli import main
from daybreak.engine.quantised_linear import QuantisedLinear, bits_of, is_quantised, unrounded
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.model.few_bits import few_bits, numel, unpacked
from daybreak.model.heads import scorer_of
from daybreak.objectives.batch import Batch, token_losses
from daybreak.objectives.summed import loss_sum, scored_loss_sum
from daybreak.parameters import count
from daybreak.text.chat import own_template
from daybreak.train import tasks
from daybreak.train.task_model import load_task_model
from daybreak.train.task_settings import TaskSettings
from daybreak.train.tuning import means
from daybreak.train.tuning_run import TuningOutcome, tune
from daybreak.train.tuning_start import device_for, start_of
from tests.unit.test_sft import written as talks
from tests.unit.test_tasks import rows
from tests.unit.tiny_models import speaking
from tests.unit.tiny_rankings import written as rankings
from tests.unit.tiny_run import Silent, steps
from tests.unit.tiny_tuning import Texts, texts, tuned
from tests.unit.tiny_tuning import settings as tiny

COMMON: dict[str, Any] = {
    "optimizer": {"lr": 1e-2},
    "batch": {"examples": 4, "micro": 2},
    "checkpoints": {"every": 2},
    "device": "cpu",
    "steps": 4,
    "lora": {"rank": 2, "bits": 8},
}


def louder(model: LanguageModel, factor: float = 3) -> LanguageModel:
    """Fresh weights are so small that rounding hardly shows."""
    with torch.no_grad():
        for one in model.decoder.parameters():
            one.mul_(factor)
    return model


@pytest.fixture
def start(tmp_path: Path) -> Path:
    louder(speaking()).save(tmp_path / "start")
    return tmp_path / "start"


def given_by(kind: type[Any], start: Path, file: Path, **tree: Any) -> Any:
    own = {"start": str(start), "data": {"file": str(file), "held_out": 0.2}}
    return reading.build(kind, reading.merged(COMMON, own, tree))


def sft_settings(start: Path, **tree: Any) -> SftSettings:
    file = start.parent / "talks.jsonl"
    given: SftSettings = given_by(SftSettings, start, file if file.exists() else talks(file), **tree)
    return given


def taught(given: SftSettings, folder: Path, job: sft.Sft | None = None) -> tuple[sft.Sft, TuningOutcome]:
    job = job or sft.job_of(start_of(given), given)
    return job, tune(job, given, folder, Silent())


def without_adapters(decoder: Decoder) -> dict[str, Tensor]:
    """Weights whole and of few bits."""
    return {name: one.clone() for name, one in decoder.state_dict().items() if ".adapters." not in name}


class Head(nn.Linear):
    """A tied head's rounded weights, which are not the embedding's any more."""

    def forward(self, hidden: Tensor, *_: Tensor) -> Tensor:
        return super().forward(hidden)


def in_floats(model: LanguageModel) -> LanguageModel:
    """The same rounded weights in ordinary layers."""
    for name, matrix in list(few_bits(model.decoder)):
        owner, _, own = name.rpartition(".")
        layer = unpacked(matrix)
        if name == "tied_head":
            layer.__class__ = Head
        setattr(model.decoder.get_submodule(owner), own, layer)
    assert not is_quantised(model.decoder)
    model.decoder.requires_grad_(False)  # so that losses ask the head, and not the embedding that it was
    return model


def held_out_loss(model: LanguageModel, given: SftSettings, held_out: bool = True) -> float:
    job = sft.job_of(model, given)
    examples = job.held_out if held_out else job.examples
    model.decoder.eval()
    with torch.no_grad():
        return means([job.loss(part) for part in job.parts(examples, 2)])["loss"]


# What is trained -----------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_alone_are_trained_and_left(bits: int, start: Path, tmp_path: Path) -> None:
    before = without_adapters(daybreak.load(start, bits=bits).decoder)
    job, outcome = taught(sft_settings(start, lora={"bits": bits}), tmp_path / "run")
    after = without_adapters(job.model.decoder)
    assert before.keys() == after.keys() and any(name.endswith(".numbers") for name in before)
    assert all(torch.equal(after[name], one) for name, one in before.items())
    trained = [name for name, one in job.modules.named_parameters() if one.requires_grad]
    assert trained and all(".adapters." in name for name in trained)
    assert outcome.exported is None and not (tmp_path / "run" / "model").exists()
    assert outcome.adapter == tmp_path / "run" / "adapter"
    told = json.loads((outcome.adapter / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(start)
    told = json.loads((tmp_path / "run" / "run.json").read_text())["about"]
    adapters = sum(one.numel() for one in job.modules.parameters() if one.requires_grad)
    assert told["parameters"] == count(job.model.architecture) + adapters


def test_the_figures_are_those_of_rounded_weights_and_nothing_else(start: Path, tmp_path: Path) -> None:
    """The first step's loss is that of floating-point layers with the same rounded weights, and so is what is
    told of the held-out rows, with the adapter: kernels, which round activations, have no part in either."""
    given = sft_settings(start, lora={"bits": 4}, batch={"examples": 100}, steps=1)
    _, outcome = taught(given, tmp_path / "run")
    first = steps(tmp_path / "run")[1]["loss"]
    same = in_floats(daybreak.load(start, bits=4))
    assert first == pytest.approx(held_out_loss(same, given, False), rel=1e-5)
    assert abs(held_out_loss(daybreak.load(start), given, False) - first) > 1e-3, "rounding shows here"
    untaught = held_out_loss(same, given)
    same.load_adapter(tmp_path / "run" / "adapter", "mine")
    assert outcome.scores["loss"] == pytest.approx(held_out_loss(same, given), rel=1e-5)
    assert outcome.scores["loss"] < untaught


class Killed(BaseException):
    """As if the process had ended."""


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(start: Path, tmp_path: Path) -> None:
    given = sft_settings(start, steps=6, lora={"dropout": 0.1}, dropout={"residual": 0.1})
    taught(given, tmp_path / "whole")
    job = sft.job_of(start_of(given), given)
    plain, left = job.loss, [7]

    def killed(part: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return plain(part)

    job.loss = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        taught(given, tmp_path / "killed", job)
    assert not (tmp_path / "killed" / "adapter").exists()
    taught(given, tmp_path / "killed")
    assert steps(tmp_path / "whole") == steps(tmp_path / "killed")
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_quantised_folder_is_a_start_too(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its scheme: it is trained as it is, and its adapter is found by the command that is told."""
    few = start.parent / "few"
    command = ["quantize", str(start), "--out", str(few), "--bits", "4", "--group", "64", "--zeros"]
    assert main.run([*command, "--embeddings"]) == 0
    given = sft_settings(few, lora={"bits": None})
    job, outcome = taught(given, tmp_path / "run")
    assert bits_of(job.model.decoder) == 4 and not any(
        one.requires_grad for name, one in job.modules.named_parameters() if "adapters" not in name
    )
    capsys.readouterr()
    file = str(given.data.file)
    base = ["align", "sft", str(few), file, "--steps", "1", "--lora.rank", "2"]
    assert main.run([*base, "--out", str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out.strip().splitlines()[-1]
    assert shown == f"try: daybreak chat {few} --adapter {tmp_path / 'two' / 'adapter'}"
    assert main.run([*shown.split()[2:], "--message", "Hi", "--max-new-tokens", "2"]) == 0
    assert outcome.adapter is not None


def test_the_command_tells_what_to_try(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(sft_settings(start).data.file), tmp_path / "run"
    command = ["align", "sft", str(start), file, "--out", str(out), "--steps", "2", "--lora.bits", "4"]
    assert main.run(command) == 0
    shown = capsys.readouterr().out.strip().splitlines()[-1]
    assert shown == f"try: daybreak chat {start} --bits 4 --adapter {out / 'adapter'}"
    assert main.run([*shown.split()[2:], "--message", "Hi", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert main.run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["adapter"]) == (None, str(out / "adapter"))


def test_an_adapter_brings_the_template_that_it_was_taught_in(start: Path, tmp_path: Path) -> None:
    job, _ = taught(sft_settings(start, steps=1), tmp_path / "run")
    plain = daybreak.load(start)
    assert plain.tokenizer is not None and job.model.tokenizer is not None
    assert own_template(plain.tokenizer) is None
    plain.load_adapter(tmp_path / "run" / "adapter", "sft")
    plain.merge("sft")
    plain.save(tmp_path / "merged")
    plain = daybreak.load(tmp_path / "merged")
    assert plain.tokenizer is not None
    assert own_template(plain.tokenizer) == own_template(job.model.tokenizer) is not None


def test_peft_computes_the_same_on_the_whole_weights(start: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    taught(sft_settings(start), tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(start)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "run" / "adapter").eval()
    ours, tokens = daybreak.load(start), torch.randint(257, (2, 20))
    plain = ours.logits(tokens)
    ours.load_adapter(tmp_path / "run" / "adapter", "mine")
    found = ours.logits(tokens)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, found, rtol=1e-5, atol=1e-5)
    rounded = daybreak.load(start, bits=8)
    rounded.load_adapter(tmp_path / "run" / "adapter", "mine")
    moved, off = (found - plain).abs().max(), (rounded.logits(tokens) - found).abs().max()
    assert 0 < off < moved, "on whole weights it computes nearly what it was trained to"


# Policies ------------------------------------------------------


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_the_reference_is_the_rounded_model_without_adapters(
    loss: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step finds no difference between policy and reference, to float32's rounding, and nothing is
    loaded twice."""
    file = rankings(tmp_path / "r.jsonl", 12)
    tree = {"loss": {"name": loss}, "kl": {"prompts": 2, "tokens": 4}, "lora": {"bits": 4}}
    given = given_by(PreferenceSettings, start, file, **tree)
    loads: list[int] = []
    plain = daybreak.language_model.load
    monkeypatch.setattr(
        "daybreak.train.tuning_start.load", lambda *a, **k: (loads.append(1), plain(*a, **k))[1]
    )
    words = ["align", "dpo", str(start), str(file), "--loss", loss, "--steps", "2", "--lora.bits", "4"]
    assert main.run([*words, "--out", str(tmp_path / "said"), "--kl.prompts", "0"]) == 0
    assert loads == [1]
    job = preference_training.job_of(start_of(given), None, given)
    outcome = tune(job, given, tmp_path / "run", Silent())
    told = steps(tmp_path / "run")
    if loss == "dpo":
        assert told[1]["loss"] == pytest.approx(0.6931472, abs=1e-5) and abs(told[1]["margin"]) < 1e-5
    else:
        assert told[1]["z0"] < 1e-4 and abs(told[1]["gain"]) < 1e-4
    assert outcome.exported is None and outcome.scores["kl_k3"] >= 0
    assert daybreak.load(start, bits=4).load_adapter(tmp_path / "run" / "adapter", "mine") is None


def test_a_policy_writes_as_it_will_write(start: Path, tmp_path: Path) -> None:
    """For the divergence the kernels are used, by policy and reference alike; training has none of them, and
    leaves the model as it was."""
    given = given_by(PreferenceSettings, start, rankings(tmp_path / "r.jsonl", 12), kl={"tokens": 2})
    job = preference_training.job_of(start_of(given), None, given)
    layers = [one for one in job.model.decoder.modules() if isinstance(one, QuantisedLinear)]
    seen: dict[str, set[bool]] = {"loss": set(), "divergence": set()}
    plain, measured = job.loss, job.divergence
    job.loss = lambda part: (seen["loss"].update(one.exact for one in layers), plain(part))[1]  # type: ignore[method-assign]
    layers[0].register_forward_pre_hook(lambda *_: seen["divergence"].add(layers[0].exact))
    job.divergence = lambda: (seen["divergence"].clear(), measured())[1]  # type: ignore[method-assign]
    tune(job, given, tmp_path / "run", Silent())
    assert seen == {"loss": {True}, "divergence": {False}} and not any(one.exact for one in layers)


# Scorers -------------------------------------------------------


def test_a_reward_model_of_few_bits_is_saved_whole(start: Path, tmp_path: Path) -> None:
    """It computes what was trained: the rounded weights, with the adapters in them."""
    given = given_by(RewardSettings, start, rankings(tmp_path / "r.jsonl", 30))
    job = reward_training.job_of(start_of(given), given)
    head = job.model.scorer.head.weight.detach().clone()
    outcome = tune(job, given, tmp_path / "run", Silent())
    assert outcome.adapter is None and outcome.exported == tmp_path / "run" / "model"
    assert not torch.equal(job.model.scorer.head.weight, head)
    asked = [text.tokens for one in job.held_out for text in one.texts]
    again = load_reward_model(tmp_path / "run" / "model")
    with unrounded(job.model.decoder):
        torch.testing.assert_close(again.rewards(asked), job.model.rewards(asked), rtol=1e-4, atol=1e-5)
    assert not is_quantised(again.decoder) and is_quantised(job.model.decoder)
    # Three maps of a block share one tensor of the file: all of them are put together.
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    with torch.no_grad():
        found = theirs(torch.tensor([asked[0]])).logits[0, 0] + again.shift
    torch.testing.assert_close(found, again.rewards(asked[:1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "head", "language"),
    [("gpt2", "extract", None), ("gpt2", "last", 0.5), ("gpt_neox", "extract", None), ("llama", "last", 0.5)],
)
def test_classifiers_of_few_bits(family: str, head: str, language: float | None, tmp_path: Path) -> None:
    """Tied or not, with new tokens or without, with the auxiliary loss: saved, they find what they found."""
    louder(speaking(family)).save(tmp_path / "start")
    data = {"text": ["text"], "label": "mood"}
    file = rows(tmp_path / "rows.jsonl", 40)
    tree = {"data": data, "head": head, "language": language, "head_dropout": 0.0}
    given = given_by(TaskSettings, tmp_path / "start", file, **tree)
    job = tasks.job_of(start_of(given), given)
    tune(job, given, tmp_path / "run", Silent())
    trained = {name for name, one in job.modules.named_parameters() if one.requires_grad}
    plain = {name for name in trained if ".adapters." not in name}
    new = {"scorer.tokens.weight"} if head == "extract" else set()
    # A head of its own that predicts new tokens is whole, and trained along as ever.
    along = {"language.matrix.weight"} if (family, head) == ("gpt_neox", "extract") else set()
    assert plain == {"scorer.head.weight"} | new | along
    again = load_task_model(tmp_path / "run" / "model")
    sequences = [one.sequences[0] for one in job.held_out]
    hidden, _, last = again.states(sequences)
    found = again.scores(hidden[torch.arange(len(last)), last], [1] * len(last))
    with unrounded(job.model.decoder):
        hidden, _, last = job.model.states(sequences)
    told = job.model.scores(hidden[torch.arange(len(last)), last], [1] * len(last))
    torch.testing.assert_close(found, told, rtol=1e-4, atol=1e-5)


def test_a_classifier_on_an_embedding_of_few_bits(start: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    assert main.run(["quantize", str(start), "--out", str(few), "--bits", "8", "--embeddings"]) == 0
    file, data = rows(tmp_path / "rows.jsonl", 40), {"text": ["text"], "label": "mood"}
    given = given_by(TaskSettings, few, file, data=data, lora={"bits": None})
    with pytest.raises(DaybreakError, match="gets no rows for start, delimiter and extract; say --head last"):
        tasks.job_of(start_of(given), given)
    given = given_by(TaskSettings, few, file, data=data, head="last", language=0.5, lora={"bits": None})
    job = tasks.job_of(start_of(given), given)
    tune(job, given, tmp_path / "run", Silent())
    again = load_task_model(tmp_path / "run" / "model")
    ours, theirs = again.decoder.tokens.weight, daybreak.load(few).decoder.tokens
    torch.testing.assert_close(ours[:5], theirs(torch.arange(5)))


def test_a_scorer_shares_rounded_weights_with_its_model() -> None:
    model = speaking("gpt_neox")
    whole = scorer_of(model.decoder)
    assert numel(whole) == sum(one.numel() for one in whole.parameters())


# What heads of few bits lose -----------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_losses_are_those_of_the_rounded_head(family: str, tmp_path: Path) -> None:
    """Not of the embedding that a tied head was made of, by every way that a loss is computed."""
    louder(speaking(family)).save(tmp_path / "start")
    model = daybreak.load(tmp_path / "start", bits=4)
    tokens = torch.randint(257, (2, 13))
    batch = Batch(model.decoder.reading(tokens[:, :-1]), tokens[:, 1:])
    logits = in_floats(daybreak.load(tmp_path / "start", bits=4)).decoder.logits(tokens[:, :-1])
    wanted = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    with unrounded(model.decoder):
        for found in (loss_sum, scored_loss_sum):
            torch.testing.assert_close(found(model.decoder, batch), wanted, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(token_losses(model.decoder, batch).sum(), wanted, rtol=1e-5, atol=1e-4)


# What is refused -----------------------------------------------


def test_what_cannot_be_is_refused_with_its_remedy(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, file = tmp_path / "few", str(sft_settings(start).data.file)
    assert main.run(["quantize", str(start), "--out", str(few), "--bits", "8"]) == 0

    def refused(*words: str, folder: Path = start) -> str:
        capsys.readouterr()
        assert main.run(["align", "sft", str(folder), file, "--out", str(tmp_path / "run"), *words]) == 2
        return capsys.readouterr().err

    assert "have 8 bits and stay as they are; train adapters on them (--lora.rank 8)" in refused(folder=few)
    assert "has weights of 8 bits, not 4; leave bits out" in refused("--lora.bits", "4", folder=few)
    assert "lora.bits is 5: Input should be 8 or 4" in refused("--lora.bits", "5")
    assert "are for the CPU so far" in refused("--lora.bits", "4", "--device", "cuda")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_library_is_held_to_the_settings(start: Path, tmp_path: Path) -> None:
    """Where a model is loaded by hand, `lora.bits` says what it must be."""
    job = Texts(daybreak.load(start), texts(4))
    with pytest.raises(DaybreakError, match=r"lora\.bits is 4, but the model's weights are whole"):
        tuned(tmp_path / "a", tiny(lora={"bits": 4}), job)
    job = Texts(daybreak.load(start, bits=8), texts(4))
    with pytest.raises(DaybreakError, match=r"lora\.bits is 4, but the model's weights have 8 bits"):
        tuned(tmp_path / "b", tiny(lora={"bits": 4}), job)
    with pytest.raises(DaybreakError, match="have 8 bits and stay as they are"):
        tuned(tmp_path / "c", tiny(), job)


def test_auto_means_the_cpu_for_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("daybreak.train.tuning_start.device_of", lambda name: name)
    assert (device_for("auto", True), device_for("auto", False)) == ("cpu", "cuda")


def test_ppo_refuses_few_bits(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = given_by(RewardSettings, start, rankings(tmp_path / "r.jsonl", 30), lora=None, steps=1)
    job = reward_training.job_of(start_of(given), given)
    tune(job, given, tmp_path / "rm", Silent())
    few = tmp_path / "few"
    assert main.run(["quantize", str(start), "--out", str(few), "--bits", "8"]) == 0
    capsys.readouterr()
    words = ["align", "ppo", str(few), str(tmp_path / "r.jsonl"), "--reward", str(tmp_path / "rm" / "model")]
    assert main.run([*words, "--out", str(tmp_path / "ppo"), "--least_accuracy", "0"]) == 2
    assert "whose weights are quantised; PPO writes with its adapters in whole" in capsys.readouterr().err
