"""A run of PPO: what it writes, that it goes on exactly, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import daybreak
from daybreak import settings as reading
from daybreak.align import ppo_run
from daybreak.align.experience import experienced
from daybreak.align.learning import add_gradients
from daybreak.align.players import Players
from daybreak.align.ppo_run import PpoOutcome, train_ppo
from daybreak.align.ppo_settings import PpoLora, PpoSettings
from daybreak.align.reward_model import RewardModel
from daybreak.align.rollout import (
    Answer,
    Laid,
    logprobs_and_entropies,
    token_logprobs,
    token_values,
    write_answers,
)
from daybreak.architecture import Rotary
from daybreak.cli.align.ppo import _print
from daybreak.cli.main import run
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.train.stop import Stop
from tests.unit.tiny_models import speaking
from tests.unit.tiny_run import Silent, byte_tokenizer, data_set

ASKED = ["the red house", "a river", "one old moon finds", "very likes", "the blue stone sees the"]
FIGURES = ("kl", "kl_k3", "entropy", "clipped", "explained_variance", "score_quantiles", "ended", "distinct")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a reward model, prompts and text to mix in."""
    folder = tmp_path_factory.mktemp("ppo")
    model = speaking(seed=0)
    with torch.no_grad():
        model.decoder.tokens.weight[256] *= 4  # ends now and then
    model.save(folder / "model")
    judge = RewardModel.of(speaking(seed=1))
    judge.save(folder / "reward")
    (folder / "reward" / "reward.json").write_text(json.dumps({"held_out": {"accuracy": 0.8}}))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ASKED))
    data_set(folder / "mix", documents=40)
    return folder


def settings(made: Path, **tree: Any) -> PpoSettings:
    base = {
        "model": str(made / "model"),
        "prompts": str(made / "prompts.jsonl"),
        "reward": str(made / "reward"),
        "episodes": 4 * 8,
        "rollout": {"answers": 8, "max_new_tokens": 6, "batch_size": 8},
        "update": {"minibatch": 4, "micro": 3},
        "optimizer": {"lr": 1e-3, "value_lr": 1e-3, "warmup": 2},
        "ptx": {"sequences": 2, "context": 16},
        "samples": {"every": 2, "prompts": 2},
        "checkpoints": {"every": 2},
    }
    return reading.build(PpoSettings, reading.merged(base, tree))


def figures(folder: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, without clocks and sessions."""
    found = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "session" not in values:
            found.append(
                {key: one for key, one in values.items() if not key.startswith(("seconds", "tokens_per"))}
            )
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    return daybreak.load(folder).decoder.state_dict()


def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session ends as Ctrl-C ends it, once it has done so many iterations."""

    class Counting(Stop):
        asks = 0

        @property
        def asked(self) -> bool:
            Counting.asks += 1
            return Counting.asks > count

        @asked.setter
        def asked(self, value: bool) -> None:
            pass

    from contextlib import contextmanager

    @contextmanager
    def stop() -> Any:
        yield Counting()

    monkeypatch.setattr(ppo_run, "stop_on_signals", stop)


KINDS: list[dict[str, Any]] = [{}, {"mix": True, "kl": {"adaptive": True}}, {"lora": {"rank": 2}}]


@pytest.mark.parametrize("kind", KINDS, ids=["plain", "mixed and adaptive", "adapters"])
def test_a_run_goes_on_as_if_it_had_never_been_stopped(
    kind: dict[str, Any], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(made, **{**kind, **({"mix": str(made / "mix")} if "mix" in kind else {})})
    whole = train_ppo(given, tmp_path / "whole", Silent())
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        first = train_ppo(given, tmp_path / "parts", Silent())
    assert (first.ending, first.iteration, first.exported) == ("stopped", 3, None)
    second = train_ppo(given, tmp_path / "parts", Silent())
    assert (second.ending, second.iteration) == ("finished", 4) == (whole.ending, whole.iteration)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    assert whole.exported is not None and second.exported is not None
    ours, theirs, begun = weights(whole.exported), weights(second.exported), weights(made / "model")
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
    assert any(not torch.equal(one, begun[name]) for name, one in ours.items())


def test_killed_between_checkpoints_it_goes_on_from_the_last(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_ppo(settings(made), tmp_path / "whole", Silent())
    calls = []

    def killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("no power")
        return experienced(*args)

    with monkeypatch.context() as patch:
        patch.setattr("daybreak.align.ppo.experienced", killed)
        with pytest.raises(RuntimeError, match="no power"):
            train_ppo(settings(made), tmp_path / "parts", Silent())
    assert train_ppo(settings(made), tmp_path / "parts", Silent()).ending == "finished"
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    assert whole.exported is not None
    theirs = weights(tmp_path / "parts" / "model")
    assert all(torch.equal(one, theirs[name]) for name, one in weights(whole.exported).items())


def test_an_iteration_tells_all_its_figures(made: Path, tmp_path: Path) -> None:
    train_ppo(settings(made, mix=str(made / "mix")), tmp_path / "run", Silent())
    lines = [line for line in figures(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert set(FIGURES) <= set(line) and line["kl_k3"] >= 0 and line["mixed_loss"] > 0
        assert line["score_quantiles"] == sorted(line["score_quantiles"])
        assert 1 <= line["length_quantiles"][0] <= line["length_quantiles"][-1] <= 6
    assert lines[0]["kl"] == lines[0]["kl_k3"] == 0  # the policy is the reference still
    logbook = (tmp_path / "run" / "logbook.md").read_text(encoding="utf-8")
    assert "(by the reference)" in logbook and "the red house" in logbook


# What the models read


def random_answers(count: int, seed: int = 0) -> list[Answer]:
    draw = torch.Generator().manual_seed(seed)

    def some(least: int, most: int) -> tuple[int, ...]:
        size = int(torch.randint(least, most + 1, (1,), generator=draw))
        return tuple(torch.randint(0, 256, (size,), generator=draw).tolist())

    return [Answer(some(1, 9), some(1, 7), ended=bool(number % 2)) for number in range(count)]


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gpt_neox"])
def test_tokens_are_read_as_each_answer_alone_is(family: str) -> None:
    model, answers = speaking(family), random_answers(7)
    critic = RewardModel.of(speaking(family, seed=1)).decoder
    laid = Laid.of(answers, torch.device("cpu"))
    with torch.no_grad():
        own, undecided = logprobs_and_entropies(model.decoder, laid)
        values = token_values(critic, laid, shift=2.0)
        assert torch.equal(own, token_logprobs(model.decoder, laid))
    for row, one in enumerate(answers):
        ids, size = torch.tensor([one.whole]), len(one.tokens)
        table = model.logits(ids)[0, len(one.prompt) - 1 : -1].log_softmax(-1)
        wanted = table.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
        torch.testing.assert_close(own[row, :size], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(undecided[row, :size], -(table.exp() * table).sum(1), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            expected = critic.unembed(critic(critic.reading(ids)))[0, len(one.prompt) - 1 : -1, 0] + 2.0
        torch.testing.assert_close(values[row, :size], expected, rtol=1e-4, atol=1e-5)
        assert not own[row, size:].any() and not values[row, size:].any()


def test_the_engine_draws_what_the_decoder_says() -> None:
    model = speaking()
    with torch.no_grad():
        model.decoder.tokens.weight.mul_(4)
    answers = write_answers(model, [(5, 6)] * 400, 1, seed=3)
    assert len({one.tokens for one in answers}) > 5  # the same prompt is answered anew each time
    shares = model.logits(torch.tensor([[5, 6]]))[0, -1].softmax(-1)
    counts = torch.zeros(257).index_add_(0, torch.tensor([one.tokens[0] for one in answers]), torch.ones(400))
    expected = 400 * shares
    likely = expected > 5
    assert (((counts - expected) ** 2 / expected)[likely].sum() < 2.5 * likely.sum()).item()
    assert write_answers(model, [(5, 6)] * 4, 3, seed=3) == write_answers(model, [(5, 6)] * 4, 3, seed=3)
    assert all(one.ended == (one.tokens[-1] == 256) for one in answers)


def test_gradients_do_not_depend_on_how_the_answers_are_divided(made: Path) -> None:
    found = []
    for micro in (1, 3, 8):
        policy, judge = daybreak.load(made / "model"), RewardModel.of(speaking(seed=1))
        players = Players(policy, judge, judge)
        given = settings(made, update={"micro": micro}, ptx={"weight": 2.0})
        seen = experienced(players, random_answers(8), given, 0.1, torch.float32)
        mixed = torch.randint(0, 256, (5, 9), generator=torch.Generator().manual_seed(0))
        learned = add_gradients(players, seen, range(8), given, torch.float32, mixed)
        gradients = [one.grad for one in players.modules.parameters() if one.grad is not None]
        found.append((vars(learned), torch.cat([one.flatten() for one in gradients])))
    for told, gradient in found[1:]:
        assert told == pytest.approx(found[0][0], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-5)


def test_the_text_that_is_mixed_in_has_its_weight(made: Path) -> None:
    """Nothing but its loss times the weight is added, and with its sign."""
    mixed = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for part in (None, mixed):
        policy, judge = daybreak.load(made / "model"), RewardModel.of(speaking(seed=1))
        players = Players(policy, judge, judge)
        given = settings(made, ptx={"weight": 27.8})
        seen = experienced(players, random_answers(4), given, 0.1, torch.float32)
        add_gradients(players, seen, range(4), given, torch.float32, part)
        found.append({n: g.grad.clone() for n, g in policy.decoder.named_parameters() if g.grad is not None})
    model = daybreak.load(made / "model")
    logits = model.decoder.logits(mixed[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), mixed[:, 1:].flatten()).backward()
    for name, one in model.decoder.named_parameters():
        assert one.grad is not None
        wanted = found[0][name] + 27.8 * one.grad
        torch.testing.assert_close(found[1][name], wanted, rtol=1e-3, atol=1e-4)


def test_policy_and_reference_share_weights_with_adapters(made: Path) -> None:
    policy, judge = daybreak.load(made / "model"), RewardModel.of(speaking(seed=1))
    answers = random_answers(5)
    laid = Laid.of(answers, torch.device("cpu"))
    with torch.no_grad():
        before = token_logprobs(policy.decoder, laid)
    rewards = judge.rewards([one.whole for one in answers])
    players = Players.of(policy, judge, PpoLora(rank=2), seed=0)
    with torch.no_grad():
        for one in players.modules.parameters():
            if one.requires_grad:
                one.add_(0.1)
        with players.reference() as reference:
            assert reference is policy.decoder
            assert torch.equal(token_logprobs(reference, laid), before)
        assert not torch.allclose(token_logprobs(policy.decoder, laid), before, atol=1e-3)
        assert torch.equal(players.rewards(answers, 8), rewards)
        assert not torch.allclose(token_values(players.critic, laid)[:, 0], rewards, atol=1e-3)
        with players.writing() as writer:
            drawn = write_answers(writer, [(1, 2)] * 50, 2, seed=0)
        with players.as_reference() as writer:
            assert write_answers(writer, [(1, 2)] * 50, 2, seed=0) != drawn
    count = sum(one.numel() for one in players.modules.parameters() if one.requires_grad)
    assert count < sum(one.numel() for one in players.modules.parameters()) / 5


# What is refused


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"rollout": {"answers": 10}}, "cannot be divided into minibatches of 4"),
        ({"episodes": 7}, "fewer than the 8 answers of one iteration"),
        ({"update": {"lam": 1.5}}, "update.lam is 1.5"),
        ({"kl": {"beta": -1}}, "kl.beta is -1"),
        ({"optimizer": {"ema": 1.0}}, "optimizer.ema is 1.0"),
        ({"watch": {"window": 1}}, "watch.window is 1"),
        ({"optimizer": {"clip": 0}}, "optimizer.clip is 0.*null to clip nothing"),
        ({"checkpoints": {"every": 0}}, "checkpoints.every is 0; it must be at least 1"),
        ({"log": {"every": 0}}, "log.every is 0"),
        ({"samples": {"every": -1}}, "samples.every is -1"),
        ({"ptx": {"sequences": 0}}, "ptx.sequences is 0"),
        ({"ptx": {"weight": -1}}, "ptx.weight is -1"),
        ({"lora": {"rank": -1}}, "lora.rank is -1"),
    ],
)
def test_settings_that_make_no_sense(tree: dict[str, Any], said: str, made: Path) -> None:
    with pytest.raises(DaybreakError, match=said):
        settings(made, **tree)


def refused(made: Path, tmp_path: Path, said: str, **tree: Any) -> None:
    with pytest.raises(DaybreakError, match=said):
        train_ppo(settings(made, **tree), tmp_path / "run", Silent())
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_a_prompt_that_leaves_no_room(made: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "x" * 93}) + "\n")
    refused(
        made,
        tmp_path,
        "line 2: the prompt has 93 tokens, and with an answer of 6",
        prompts=str(tmp_path / "long.jsonl"),
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('{"prompt": "  "}\n', "line 1 has an empty prompt"),
        ("", "holds no prompts"),
        ('{"question": "why?"}\n', "line 1 has neither prompt nor messages"),
        ("why?\n", "line 1 is not JSON"),
    ],
)
def test_prompts_that_are_none(rows: str, said: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(rows)
    refused(made, tmp_path, said, prompts=str(tmp_path / "prompts.jsonl"))


def test_a_reward_model_of_other_words(made: Path, tmp_path: Path) -> None:
    judge = RewardModel.of(speaking(vocabulary=258))
    judge.save(tmp_path / "reward")
    refused(
        made,
        tmp_path,
        "257 tokens and the reward model .* 258",
        reward=str(tmp_path / "reward"),
        least_accuracy=None,
    )
    judge = RewardModel.of(speaking())
    judge.tokenizer = byte_tokenizer(("<|user|>",))  # one more than the table has
    judge.save(tmp_path / "other")
    refused(made, tmp_path, "another tokenizer", reward=str(tmp_path / "other"), least_accuracy=None)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])  # the latter has no table that ends
def test_a_reward_model_of_a_shorter_context(family: str, made: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {} if family == "gpt2" else {"positions": Rotary(8)}
    RewardModel.of(speaking(family, context=16, **changes)).save(tmp_path / "reward")
    said = "prompts and answers come to 29 tokens, and the reward model .* reads 16"
    refused(made, tmp_path, said, reward=str(tmp_path / "reward"), least_accuracy=None)


def test_a_reward_model_that_is_hardly_better_than_chance(made: Path, tmp_path: Path) -> None:
    refused(made, tmp_path, "right about 80.0% of held-out pairs, and 90.0%", least_accuracy=0.9)
    report = made / "reward" / "reward.json"
    kept = report.read_text()
    try:
        report.unlink()
        refused(made, tmp_path, "does not say how good", least_accuracy=0.6)
        assert train_ppo(settings(made, least_accuracy=None), tmp_path / "any", Silent()).ending == "finished"
    finally:
        report.write_text(kept)


def test_a_reward_that_is_no_number_ends_the_run(made: Path, tmp_path: Path) -> None:
    judge = RewardModel.of(speaking(seed=1))
    with torch.no_grad():
        judge.decoder.head.weight[:] = math.nan
    judge.save(tmp_path / "reward")
    with pytest.raises(DaybreakError, match=r"the reward model says nan of the answer '.*' to '"):
        train_ppo(
            settings(made, reward=str(tmp_path / "reward"), least_accuracy=None), tmp_path / "run", Silent()
        )
    logbook = (tmp_path / "run" / "logbook.md").read_text(encoding="utf-8")
    assert "failed at step 0" in logbook and "the reward model says nan" in logbook


def test_a_loss_that_is_no_number_moves_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Decoder] = []

    def broken(players: Players, *rest: Any) -> Any:
        learned = add_gradients(players, *rest)
        seen.append(players.policy.decoder)
        return type(learned)(**{**vars(learned), "value_loss": math.inf})

    monkeypatch.setattr("daybreak.align.ppo.add_gradients", broken)
    with pytest.raises(
        DaybreakError, match="the value loss of iteration 1 is inf, and the step was not taken"
    ):
        train_ppo(settings(made), tmp_path / "run", Silent())
    begun = weights(made / "model")
    assert all(torch.equal(one, begun[name]) for name, one in seen[0].state_dict().items())


def test_another_run_is_not_continued(made: Path, tmp_path: Path) -> None:
    train_ppo(settings(made), tmp_path / "run", Silent())
    with pytest.raises(DaybreakError, match=r"holds a run with kl\.beta 0\.02, not 0\.5"):
        train_ppo(settings(made, kl={"beta": 0.5}), tmp_path / "run", Silent())
    longer, file = settings(made, episodes=48), made / "prompts.jsonl"
    kept = file.read_text()
    try:
        file.write_text('{"prompt": "other"}\n')
        with pytest.raises(DaybreakError, match=r"the prompts, .* are not those that this run was begun"):
            train_ppo(longer, tmp_path / "run", Silent())
    finally:
        file.write_text(kept)
    assert train_ppo(longer, tmp_path / "run", Silent()).iteration == 6
    left = (tmp_path / "run" / "settings.yaml").read_text()
    with pytest.raises(DaybreakError, match="has done 6 iterations, more than the 4 that 32 episodes are"):
        train_ppo(settings(made), tmp_path / "run", Silent())
    assert (tmp_path / "run" / "settings.yaml").read_text() == left


def test_text_of_another_tokenizer_is_not_mixed_in(made: Path, tmp_path: Path) -> None:
    data_set(tmp_path / "mix", documents=40, marks=("<|user|>",))
    refused(made, tmp_path, "has 258 tokens and the model 257", mix=str(tmp_path / "mix"))


# Conversations

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_answers_in_a_conversation_end_with_their_turn(made: Path, tmp_path: Path) -> None:
    marks = ("<|user|>", "<|assistant|>", "<|end|>")
    model = speaking("gpt_j", vocabulary=260, positions=Rotary(8, "neighbours"))
    model.tokenizer = byte_tokenizer(marks)
    model.tokenizer.files["chat_template.jinja"] = TEMPLATE.encode()
    with torch.no_grad():
        model.decoder.head.bias[259] = 20.0
    model.save(tmp_path / "model")
    RewardModel.of(model).save(tmp_path / "reward")
    asked = [{"messages": [{"role": "user", "content": "Hello"}]}, {"prompt": "Hello"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    given = settings(
        made,
        model=str(tmp_path / "model"),
        reward=str(tmp_path / "reward"),
        prompts=str(tmp_path / "prompts.jsonl"),
        least_accuracy=None,
    )
    train_ppo(given, tmp_path / "run", Silent())
    lines = [line for line in figures(tmp_path / "run") if "loss" in line]
    assert [(line["ended"], line["length"]) for line in lines] == [(1.0, 1.0)] * 4


def test_a_reward_model_of_another_template_is_refused(made: Path, tmp_path: Path) -> None:
    for name, template in (("model", TEMPLATE), ("reward", TEMPLATE.replace("content", "content + '!'"))):
        model = speaking(vocabulary=260)
        model.tokenizer = byte_tokenizer(("<|user|>", "<|assistant|>", "<|end|>"))
        model.tokenizer.files["chat_template.jinja"] = template.encode()
        (model if name == "model" else RewardModel.of(model)).save(tmp_path / name)
    row = {"messages": [{"role": "user", "content": "Hello"}]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    folders = {name: str(tmp_path / name) for name in ("model", "reward")}
    prompts = str(tmp_path / "prompts.jsonl")
    refused(made, tmp_path, "another chat template", prompts=prompts, least_accuracy=None, **folders)


# On the command line


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "align",
        "ppo",
        str(made / "model"),
        str(made / "prompts.jsonl"),
        "--reward",
        str(made / "reward"),
    ]
    words += [
        "--out",
        str(tmp_path / "run"),
        "--episodes",
        "16",
        "--rollout.answers",
        "8",
        "--rollout.max-new-tokens",
        "4",
    ]
    words += ["--update.minibatch", "4", "--mix", str(made / "mix"), "--ptx.sequences", "1"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "2 iterations done; the last: score" in printed and "kl " in printed
    assert printed.endswith(f'try: daybreak generate {tmp_path / "run" / "model"} "..."\n')
    (tmp_path / "run" / "model" / "chat_template.jinja").write_text(TEMPLATE)
    _print(PpoOutcome(tmp_path, "finished", None, 2, 2, {}, tmp_path / "run" / "model"), as_json=False)
    assert capsys.readouterr().out.endswith(f"try: daybreak chat {tmp_path / 'run' / 'model'}\n")
    (tmp_path / "run" / "model" / "chat_template.jinja").unlink()
    assert daybreak.load(tmp_path / "run" / "model").tokenizer is not None
    assert run(["align", "ppo", "--out", str(tmp_path / "run"), "--json"]) == 0  # nothing is left to do
    told = json.loads(capsys.readouterr().out)
    assert (told["ending"], told["iteration"]) == ("finished", 2)
    assert run(["align", "ppo", str(made / "model"), "--out", str(tmp_path / "other")]) == 2
    assert "no reward is named" in capsys.readouterr().err
