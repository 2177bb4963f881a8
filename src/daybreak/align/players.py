"""The four models of PPO: a policy that writes, the reference that it began as, a reward model that judges,
and a critic that foresees the judgement."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from daybreak.align.ppo_settings import PpoLora
from daybreak.align.reward_model import RewardModel
from daybreak.align.rollout import Answer
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import DEFAULT, add_lora, disabled, trainable
from daybreak.model.decoder import Decoder
from daybreak.model.lora_settings import LoraSettings
from daybreak.model.merging import merge, unmerge
from daybreak.train.export import export


class Judge(Protocol):
    """What says how good texts are."""

    def rewards(self, texts: Sequence[Sequence[int]], batch: int = 32) -> Tensor:
        """[texts] float32 on the CPU, larger is better; each a prompt and its answer as token ids."""


class Players:
    """Policy and critic are trained, reference and judge stay as they are."""

    def __init__(self, policy: LanguageModel, judge: Judge, critic: RewardModel) -> None:
        """`critic` becomes what its name says, in place; the reference is a copy of the policy as it is. A
        critic that is the judge is copied first (InstructGPT, section 3.5: the value function begins as the
        reward model)."""
        if critic is judge:
            critic = dataclasses.replace(critic, decoder=copy.deepcopy(critic.decoder))
        self._begin(policy, judge, critic)
        self._reference = copy.deepcopy(policy.decoder).requires_grad_(False).eval()
        for decoder in (policy.decoder, self.critic):
            decoder.requires_grad_(True)

    def _begin(self, policy: LanguageModel, judge: Judge, critic: RewardModel) -> None:
        self.policy, self.judge = policy, judge
        self.critic, self.shift = critic.decoder, critic.shift
        self.stop_tokens: tuple[int, ...] = ()
        """What ends an answer besides the policy's end token: a template's mark behind a turn."""
        self.modules = nn.ModuleDict({"policy": policy.decoder, "critic": self.critic}).train()

    @classmethod
    def of(cls, policy: LanguageModel, reward: RewardModel, lora: PpoLora, seed: int) -> Players:
        """The reward model judges, and the critic begins as it is."""
        return SharedPlayers(policy, reward, lora, seed) if lora.rank else cls(policy, reward, reward)

    @property
    def device(self) -> torch.device:
        return self.policy.decoder.tokens.weight.device

    @contextmanager
    def reference(self) -> Iterator[Decoder]:
        """The reference's decoder, within."""
        yield self._reference

    @contextmanager
    def writing(self) -> Iterator[LanguageModel]:
        """The policy as a model that writes, within: its weights must not be trained meanwhile."""
        yield self.policy

    @contextmanager
    def as_reference(self) -> Iterator[LanguageModel]:
        """The reference as a model that writes, within."""
        with self.reference() as decoder:
            yield dataclasses.replace(self.policy, decoder=decoder)

    def rewards(self, answers: Sequence[Answer], batch: int) -> Tensor:
        """[answers] float32: what the judge says of each answer behind its prompt."""
        return self.judge.rewards([one.whole for one in answers], batch)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """The policy as a Hugging Face folder; `weights`, by the names of its trained parameters, take the
        place of its own: a moving average."""
        export(self.policy, folder, weights)

    def told(self, answer: Answer) -> str:
        """An answer in words, for errors."""
        if self.policy.tokenizer is None:
            return f"the answer {list(answer.tokens)} to {list(answer.prompt)}"
        prompt, text = (self.policy.tokenizer.decode(list(ids)) for ids in (answer.prompt, answer.tokens))
        return f"the answer {text!r} to {prompt!r}"


class SharedPlayers(Players):
    """Policy and critic are adapters on the weights of reference and judge."""

    def __init__(self, policy: LanguageModel, judge: RewardModel, lora: PpoLora, seed: int) -> None:
        """The models get their adapters in place; those of the critic leave its head as it is."""
        for number, decoder in enumerate((policy.decoder, judge.decoder)):
            add_lora(decoder, LoraSettings(rank=lora.rank, alpha=lora.alpha), seed=2 * seed + number)
        self._begin(policy, judge, judge)

    @contextmanager
    def reference(self) -> Iterator[Decoder]:
        with disabled(self.policy.decoder):
            yield self.policy.decoder

    @contextmanager
    def writing(self) -> Iterator[LanguageModel]:
        """With the adapters in the weights, which saves their products at every token."""
        merge(self.policy.decoder, DEFAULT)
        try:
            yield self.policy
        finally:
            unmerge(self.policy.decoder, DEFAULT)

    def rewards(self, answers: Sequence[Answer], batch: int) -> Tensor:
        with disabled(self.critic):
            return super().rewards(answers, batch)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """With the adapters in the weights, as an ordinary folder; the policy's own adapters become
        `weights`."""
        own = trainable(self.policy.decoder)
        with torch.no_grad():
            for name, one in (weights or {}).items():
                own[name].copy_(one)
        with self.writing() as model:
            model.save(folder)
