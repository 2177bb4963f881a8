"""A run of PPO from start to end: begin or go on, learn, leave an ordinary model folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from daybreak import settings as reading
from daybreak.align.players import Players
from daybreak.align.ppo import Ppo
from daybreak.align.ppo_figures import PpoWatch
from daybreak.align.ppo_records import PpoRecords
from daybreak.align.ppo_settings import FREE, PpoSettings
from daybreak.align.ppo_state import PpoState
from daybreak.align.reward_model import RewardModel, load_reward_model
from daybreak.align.reward_report import require_accuracy
from daybreak.align.rounds import Ids, check_room, round_ids
from daybreak.data.loader import Loader
from daybreak.data.prompts import Rounds, read_rounds
from daybreak.data.token_shards import TokenSet
from daybreak.engine.quantised_linear import is_quantised
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel, load
from daybreak.text.chat import own_template, turn_end
from daybreak.text.tokenizer import Tokenizer
from daybreak.train import run_folder
from daybreak.train.records import Screen
from daybreak.train.run_status import Ending
from daybreak.train.stop import Stop, stop_on_signals

PROBE = "def f(x):\n    return [x, 'Ärger', 12345]  # naïve"
"""A text that two tokenizers are compared by, beside their sizes."""

TOLD = ("score", "kl", "ended", "length")
"""Figures that the last words of a run tell."""


@dataclass(frozen=True)
class PpoOutcome:
    """What came of a run."""

    folder: Path
    ending: Ending
    signal: int | None
    """What stopped it."""
    iteration: int
    iterations: int
    figures: dict[str, float]
    """Some of the last iteration's; none where this session made none."""
    exported: Path | None
    """The policy as a Hugging Face folder."""


def train_ppo(settings: PpoSettings, folder: Path, screen: Screen) -> PpoOutcome:
    """Train as `settings` say in the run folder `folder`; where a run stands there, go on with it from its
    newest checkpoint, bit for bit as if it had never been interrupted.

    SIGINT and SIGTERM end it after a checkpoint. Raises `DaybreakError` for models, prompts, settings or a
    folder that do not fit, and for what is not finite.
    """
    with stop_on_signals() as stop, run_folder.locked(folder):
        before = run_folder.stored_as(PpoSettings, folder)
        changes = {} if before is None else _changes(before, settings, folder)
        policy, reward = _models(settings, screen)
        asked = _asked(policy, settings)
        check_reward(policy, reward, asked, settings)
        loader = _mix(policy, settings)
        players = Players.of(policy, reward, settings.lora, settings.seed)
        players.stop_tokens = stop_tokens(policy, [rounds for rounds, _ in asked])
        session = Session(settings, players, [ids for _, ids in asked], folder, screen, loader)
        return session.run(stop, changes)


class Session:
    """A run with everything that takes part in it at hand: what `train_ppo` opens, or a test makes."""

    def __init__(
        self,
        settings: PpoSettings,
        players: Players,
        conversations: Sequence[Ids],
        folder: Path,
        screen: Screen,
        loader: Loader | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        records = PpoRecords(folder, settings, screen)
        state = PpoState(players.modules, settings, folder, records.note)
        state.data = _fingerprint(players, conversations, loader)
        self.ppo = Ppo(players, conversations, settings, state, PpoWatch(settings.watch), records, loader)

    def run(self, stop: Stop, changes: Mapping[str, tuple[Any, Any]] | None = None) -> PpoOutcome:
        """From the newest checkpoint to the end, or to where it is stopped."""
        ppo, settings = self.ppo, self.ppo.settings
        state, records = ppo.state, ppo.records
        remembered = state.resume()
        if remembered is not None:
            ppo.watch.restore(remembered)
        if state.progress.iteration > settings.iterations:
            raise DaybreakError(
                f"{self.folder} has done {state.progress.iteration} iterations, more than the "
                f"{settings.iterations} that {settings.episodes} episodes are; set --episodes higher, or "
                "give another folder with --out"
            )
        run_folder.write(self.folder, reading.to_yaml(settings))
        records.begin(state.progress.iteration, settings.iterations, changes or {}, _facts(ppo), _about(ppo))
        exported = self.folder / run_folder.EXPORT
        try:
            ending = ppo.train(stop)
            if ending == "finished":
                ppo.players.save(exported, state.average)
        except BaseException as error:
            with contextlib.suppress(Exception):  # what is being written is finished, if it can be
                state.checkpoints.wait()
            records.failed(state.progress.iteration, error)
            raise
        signal = stop.signal if ending == "stopped" else None
        records.ended(state.progress.iteration, ending, signal)
        left, done = exported if ending == "finished" else None, state.progress.iteration
        told = {name: ppo.last[name] for name in TOLD if name in ppo.last}
        return PpoOutcome(self.folder, ending, signal, done, settings.iterations, told, left)


def stop_tokens(policy: LanguageModel, asked: Sequence[Rounds]) -> tuple[int, ...]:
    """The mark behind a turn, where prompts are messages and the template has one."""
    template = None if policy.tokenizer is None else own_template(policy.tokenizer)
    if template is None or all(isinstance(rounds[0], str) for rounds in asked):
        return ()
    assert policy.tokenizer is not None
    end = turn_end(policy.tokenizer, template)
    return () if end is None else (end,)


def check_tokens(policy: LanguageModel, reward: RewardModel, name: str) -> None:
    """Raises `DaybreakError` where the reward model would read other words than the policy wrote."""
    own, other = policy.architecture, reward.architecture
    if own.vocabulary != other.vocabulary:
        raise DaybreakError(
            f"the policy has {own.vocabulary} tokens and the reward model {name} {other.vocabulary}: they "
            "must share a tokenizer; train the reward model from the policy's own start"
        )
    if _spelled(policy.tokenizer) != _spelled(reward.tokenizer):
        raise DaybreakError(
            f"the reward model {name} has another tokenizer than the policy, so it would read other words "
            "than were written; train it from the policy's own start"
        )


def check_reward(
    policy: LanguageModel, reward: RewardModel, asked: Sequence[tuple[Rounds, Ids]], settings: PpoSettings
) -> None:
    """Raises `DaybreakError` where the reward model would meet what it has not learned: texts beyond its
    context, or conversations in another form."""
    answer, context = settings.rollout.max_new_tokens, policy.architecture.context
    longest = max(min(sum(map(len, ids)) + answer * len(ids), context) for _, ids in asked)
    if longest > reward.architecture.context:
        raise DaybreakError(
            f"prompts and answers come to {longest} tokens, and the reward model {settings.reward} reads "
            f"{reward.architecture.context}; leave long prompts out, set rollout.max_new_tokens lower, or "
            "train the reward model from the policy's own start"
        )
    assert policy.tokenizer is not None and reward.tokenizer is not None
    own, other = (own_template(one) for one in (policy.tokenizer, reward.tokenizer))
    if own != other and None not in (own, other) and not all(isinstance(one[0], str) for one, _ in asked):
        raise DaybreakError(
            f"the reward model {settings.reward} has another chat template than the policy, so it would read "
            "conversations in a form that it has not learned; train it from the policy's own start"
        )


def _spelled(tokenizer: Tokenizer | None) -> Any:
    if tokenizer is None:
        return None
    return tokenizer.vocabulary, tokenizer.eos_id, tokenizer.encode(PROBE, bos=False)


def _models(settings: PpoSettings, screen: Screen) -> tuple[LanguageModel, RewardModel]:
    for name in ("model", "reward"):
        if not getattr(settings, name):
            raise DaybreakError(f"no {name} is named; PPO needs a model, prompts and a reward model")
    least = settings.least_accuracy
    require_accuracy(settings.reward, least or 0.0, anyway=least is None)
    screen.phase("reading the models")
    reward = load_reward_model(settings.reward)
    policy = load(settings.model)
    if is_quantised(policy.decoder):
        raise DaybreakError(
            f"model is {settings.model}, whose weights are quantised; PPO writes with its adapters in whole "
            "weights, so name the checkpoint that it was made from"
        )
    if policy.tokenizer is None:
        raise DaybreakError(
            f"{settings.model} has no tokenizer, so it cannot read prompts; give one that has"
        )
    check_tokens(policy, reward, settings.reward)
    cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    device = "cuda" if cuda else "cpu" if settings.device == "auto" else settings.device
    for decoder in (policy.decoder, reward.decoder):
        decoder.to(device)
    return policy, reward


def _asked(policy: LanguageModel, settings: PpoSettings) -> list[tuple[Rounds, Ids]]:
    """What is to be answered, in words and as token ids. Raises `DaybreakError`, which names the row, for the
    first that the policy cannot read or that leaves no room for an answer."""
    if settings.prompts is None:
        raise DaybreakError('no prompts are named; give a file with rows of {"prompt": ...}')
    found = []
    for where, rounds in read_rounds(settings.prompts):
        try:
            ids = round_ids(policy, rounds)
            check_room(ids, settings.rollout.max_new_tokens, policy.architecture.context)
        except DaybreakError as error:
            raise DaybreakError(f"{where}: {error}") from None
        found.append((rounds, ids))
    return found


def _mix(policy: LanguageModel, settings: PpoSettings) -> Loader | None:
    """Of the text to mix in. Raises `DaybreakError` where it is of another tokenizer."""
    if settings.mix is None:
        return None
    data = TokenSet.open(settings.mix)
    if data.vocabulary > policy.architecture.vocabulary:
        raise DaybreakError(
            f"{settings.mix} has {data.vocabulary} tokens and the model {policy.architecture.vocabulary}; "
            "build it with the model's tokenizer"
        )
    own = data.tokenizer()
    if _spelled(own) != _spelled(policy.tokenizer):
        raise DaybreakError(
            f"{settings.mix} was built with another tokenizer than the model's; build it anew"
        )
    context = settings.ptx.context or min(data.context, policy.architecture.context)
    return Loader(data, context, settings.seed)


def _changes(before: PpoSettings, given: PpoSettings, folder: Path) -> dict[str, tuple[Any, Any]]:
    """What `given` changes. Raises `DaybreakError` for a change that would make it another run, once it has a
    checkpoint."""
    changes = reading.changed(before, given)
    begun = any((folder / run_folder.CHECKPOINTS).glob("step-*"))
    for name, (old, new) in changes.items():
        if begun and name.partition(".")[0] not in (*FREE, "episodes"):
            raise DaybreakError(
                f"{folder} holds a run with {name} {old!r}, not {new!r}; leave it as it was, or start "
                "another run with --out"
            )
    return changes


def _fingerprint(players: Players, conversations: Sequence[Ids], loader: Loader | None) -> str:
    """Of what a run reads and of what it starts from."""
    digest = hashlib.blake2b(digest_size=16)
    read = [[list(ids) for ids in rounds] for rounds in conversations]
    digest.update(json.dumps([ids[0] if len(ids) == 1 else ids for ids in read]).encode())
    digest.update((loader.fingerprint if loader else "").encode())
    for name, one in sorted(players.modules.state_dict().items()):
        digest.update(f"{name} {tuple(one.shape)} {one.double().sum().item()!r}".encode())
    return digest.hexdigest()


def _facts(ppo: Ppo) -> dict[str, Any]:
    count = sum(one.numel() for one in ppo.players.policy.decoder.parameters())
    return {"family": ppo.players.policy.family.name, "parameters": count}


def _about(ppo: Ppo) -> dict[str, str]:
    settings = ppo.settings
    mixed = "none" if ppo.loader is None else f"{settings.mix}, weight {settings.ptx.weight:g}"
    most = max(map(len, ppo.conversations))
    answers = "answers" if most == 1 else f"conversations of up to {most} answers"
    more = "" if most == 1 else " or more"
    return {
        "policy and reference": settings.model or "given",
        "reward model": settings.reward or "given",
        "prompts": f"{len(ppo.conversations):,} ({settings.prompts})",
        "text mixed in": mixed,
        "one iteration": f"{settings.rollout.answers} {answers}, "
        f"{settings.update.epochs * settings.rollout.answers // settings.update.minibatch} steps{more}",
    }
