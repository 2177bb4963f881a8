"""How the demo's small models are trained: numbers that were tried out, for models of a few million weights.

Published ones are for models a thousand times as large, which want learning rates a hundred times as small.
"""

from __future__ import annotations

from pathlib import Path

from daybreak import settings as reading
from daybreak.align.ppo_settings import PpoSettings
from daybreak.align.preference_settings import PreferenceSettings, RewardSettings
from daybreak.align.sft_settings import SftSettings

BASE = 1500
"""Steps of the quickstart for the model to start from, where none is given."""
DEMONSTRATIONS = 2000
"""Real functions at most, in a run of the usual length."""
RANKED, ANSWERS = 1000, 4
"""Prompts that are answered so many times for rankings."""
ITERATIONS, EPISODES = 60, 64
"""Of PPO, and answers in each."""
PTX = 1.0
"""Weight of the text that PPO-ptx mixes in. With InstructGPT's 27.8 the gradient of a model of this size was
nearly all of that text's (its norm 25, that of PPO's own loss 1), and the reward fell."""
HELD_OUT = 300
"""Prompts that all models are measured on."""
LEAST_ACCURACY: float | None = 0.6
"""Of the reward model on held-out pairs."""
_LOG = {"every": 1, "tensorboard": False}


def sft(start: str, file: Path, seed: int) -> SftSettings:
    """Demonstrations, three times."""
    tree = {
        "start": start,
        "seed": seed,
        "epochs": 3,
        "batch": {"examples": 32, "micro": 8},
        "optimizer": {"lr": 1e-3},
        "data": {"file": str(file), "longer": "leave_out", "held_out": 0.05},
        "log": _LOG,
    }
    return reading.build(SftSettings, tree)


def reward(start: str, file: Path, seed: int) -> RewardSettings:
    """Rankings, twice; the best weights by the prompts held out."""
    tree = {
        "start": start,
        "seed": seed,
        "epochs": 2,
        "batch": {"examples": 16, "micro": 8},
        "optimizer": {"lr": 3e-4},
        "data": {"file": str(file), "longer": "leave_out", "held_out": 0.15},
        "log": _LOG,
    }
    return reading.build(RewardSettings, tree)


def ppo(
    model: str, prompts: Path, reward: str, mix: Path | None, iterations: int, room: int, seed: int
) -> PpoSettings:
    """PPO, or PPO-ptx with text to mix in."""
    tree = {
        "model": model,
        "prompts": str(prompts),
        "reward": reward,
        "mix": None if mix is None else str(mix),
        "least_accuracy": LEAST_ACCURACY,
        "seed": seed,
        "episodes": iterations * EPISODES,
        "rollout": {"answers": EPISODES, "max_new_tokens": room},
        "update": {"minibatch": 16, "micro": 16},
        "optimizer": {"lr": 1e-4, "value_lr": 3e-4, "warmup": min(10, iterations // 4), "ema": 0.9},
        "kl": {"beta": 0.05},
        "ptx": {"weight": PTX, "sequences": 8},
        "samples": {"every": 0},
        "checkpoints": {"every": 20},
        "log": _LOG,
    }
    return reading.build(PpoSettings, tree)


def dpo(start: str, file: Path, seed: int) -> PreferenceSettings:
    """All pairs of the rankings, once."""
    tree = {
        "start": start,
        "seed": seed,
        "batch": {"examples": 32, "micro": 16},
        "optimizer": {"name": "rmsprop", "lr": 3e-5, "clip": 10.0},
        "schedule": {"warmup": "10 %"},
        "data": {"file": str(file), "longer": "leave_out", "held_out": 0.15},
        "kl": {"prompts": 0},
        "log": _LOG,
    }
    return reading.build(PreferenceSettings, tree)
