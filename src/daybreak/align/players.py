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
from daybreak.model.decoder import Decoder
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
        self.policy, self.judge = policy, judge
        self.stop_tokens: tuple[int, ...] = ()
        """What ends an answer besides the policy's end token: a template's mark behind a turn."""
        if critic is judge:
            critic = dataclasses.replace(critic, decoder=copy.deepcopy(critic.decoder))
        self.critic = critic.decoder
        self.shift = critic.shift
        """Added to what the critic's head says."""
        self._reference: Decoder | None = copy.deepcopy(policy.decoder).requires_grad_(False).eval()
        for decoder in (policy.decoder, self.critic):
            decoder.requires_grad_(True).train()
        self.modules = nn.ModuleDict({"policy": policy.decoder, "critic": self.critic})

    @classmethod
    def of(cls, policy: LanguageModel, reward: RewardModel, lora: PpoLora, seed: int) -> Players:
        """The reward model judges, and the critic begins as it is."""
        return cls(policy, reward, reward)

    @property
    def device(self) -> torch.device:
        return self.policy.decoder.tokens.weight.device

    @contextmanager
    def reference(self) -> Iterator[Decoder]:
        """The reference's decoder, within."""
        assert self._reference is not None
        yield self._reference

    @contextmanager
    def as_reference(self) -> Iterator[LanguageModel]:
        """The reference as a model that writes, within."""
        with self.reference() as decoder:
            yield dataclasses.replace(self.policy, decoder=decoder)

    def rewards(self, answers: Sequence[Answer], batch: int) -> Tensor:
        """[answers] float32: what the judge says of each answer behind its prompt."""
        return self.judge.rewards([one.whole for one in answers], batch)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """The policy as a Hugging Face folder; `weights`, by the names of its trained parameters, in the place
        of its own: a moving average."""
        export(self.policy, folder, weights)

    def told(self, answer: Answer) -> str:
        """An answer in words, for errors."""
        if self.policy.tokenizer is None:
            return f"the answer {list(answer.tokens)} to {list(answer.prompt)}"
        prompt, text = (self.policy.tokenizer.decode(list(ids)) for ids in (answer.prompt, answer.tokens))
        return f"the answer {text!r} to {prompt!r}"
