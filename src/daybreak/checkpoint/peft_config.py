"""adapter_config.json of PEFT: what an adapter is, read without guessing and written as PEFT reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daybreak.errors import DaybreakError

CONFIG = "adapter_config.json"
READ = (
    "peft_type r lora_alpha lora_dropout use_rslora rank_pattern alpha_pattern modules_to_save "
    "init_lora_weights bias"
)
HARMLESS = (
    "auto_mapping base_model_name_or_path revision task_type peft_version inference_mode target_modules "
    "exclude_modules fan_in_fan_out layers_to_transform layers_pattern megatron_core megatron_config "
    "loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config"
)
"""Keys that say where an adapter is, which its tensors' names say too, or how it came to be."""
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to draw fresh A and B that leave the model's own weights as they are."""
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "r": ((int,), "a whole number"),
    "lora_alpha": ((int, float), "a number"),
    "lora_dropout": ((int, float), "a number"),
    "use_rslora": ((bool,), "true or false"),
    "rank_pattern": ((dict,), "an object"),
    "alpha_pattern": ((dict,), "an object"),
    "modules_to_save": ((list,), "a list"),
}


@dataclass(frozen=True)
class PeftConfig:
    """What is read of the file."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Regular expressions of ends of modules' names -> their ranks, where they are not `rank`."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    """Ends of the names of modules that the adapter has whole."""

    def rank_of(self, module: str) -> int:
        return int(_by_pattern(self.ranks, module, self.rank))

    def alpha_of(self, module: str) -> float:
        return _by_pattern(self.alphas, module, self.alpha)


def _by_pattern(patterns: Mapping[str, float], module: str, usual: float) -> float:
    for key, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise DaybreakError(
                f"{CONFIG} has the pattern {key!r}, which is no regular expression: {error}"
            ) from None
    return usual


def read(folder: Path) -> PeftConfig:
    """Raises `DaybreakError` where there is no such file, where it is damaged, and for options that would
    compute something else.
    """
    file = folder / CONFIG
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DaybreakError(
            f"{folder} is no folder of an adapter: {CONFIG} cannot be read ({error.strerror or error}); name "
            "the folder that holds it and adapter_model.safetensors"
        ) from None
    except ValueError as error:
        raise DaybreakError(f"{file} is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise DaybreakError(f"{file} must hold an object")
    _check(file, told)
    config = PeftConfig(
        told.get("r", 8),
        told.get("lora_alpha", 8),
        told.get("lora_dropout", 0.0),
        told.get("use_rslora", False),
        told.get("rank_pattern") or {},
        told.get("alpha_pattern") or {},
        tuple(told.get("modules_to_save") or ()),
    )
    numbers: list[Any]
    for name, numbers in (
        ("r", [config.rank, *config.ranks.values()]),
        ("lora_alpha", [config.alpha, *config.alphas.values()]),
    ):
        if any(not isinstance(one, int | float) or isinstance(one, bool) or not one > 0 for one in numbers):
            raise DaybreakError(f"{file} sets {name} or its pattern to {numbers}; these must be above 0")
    return config


def _check(file: Path, told: Mapping[str, Any]) -> None:
    if told.get("peft_type") != "LORA":
        raise DaybreakError(f"{file} is of peft_type {told.get('peft_type')!r}; only LORA is supported")
    for key, value in told.items():
        kinds, spoken = _KINDS.get(key, ((object,), ""))
        if value is not None and not isinstance(value, kinds):
            raise DaybreakError(f"{file} sets {key} = {value!r}, where it must be {spoken}")
        is_set = value not in (None, False, "", [], {})
        if is_set and key not in f"{READ} {HARMLESS}".split():
            raise DaybreakError(
                f"{file} sets {key} = {value!r}, which is not supported; the adapter would load and compute "
                "something else"
            )
    if (start := told.get("init_lora_weights")) not in KEEPS_BASE:
        raise DaybreakError(
            f"{file} sets init_lora_weights = {start!r}, with which the model's own weights were changed "
            "before training; save the adapter anew with PEFT's path_initial_model_for_weight_conversion"
        )
    if told.get("bias", "none") != "none":
        raise DaybreakError(f"{file} sets bias = {told['bias']!r}: biases of an adapter are not supported")


@dataclass(frozen=True)
class Placed:
    """What is written of one module."""

    rank: int
    alpha: float


def write(
    placed: Mapping[str, Placed],
    whole: Sequence[str],
    every: Iterable[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    turned: bool,
    source: str | None,
) -> dict[str, Any]:
    """adapter_config.json. `placed`: the modules with A and B; `whole`: those that are whole; `every`: all
    modules of the model; `rank` and `alpha` are written where they are not a module's own; `turned`: some
    weights are stored [inputs, outputs]; `source`: the model's name.
    """
    every = list(every)
    ranks = {module: one.rank for module, one in placed.items() if one.rank != rank}
    alphas = {module: one.alpha for module, one in placed.items() if one.alpha != alpha}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "target_modules": ends(list(placed), every),
        "rank_pattern": _patterns(ranks, list(placed)),
        "alpha_pattern": {key: _plain(value) for key, value in _patterns(alphas, list(placed)).items()},
        "modules_to_save": list(whole) or None,
        "fan_in_fan_out": turned,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def ends(names: Sequence[str], every: Iterable[str]) -> list[str]:
    """The shortest ends of `names` that no other of `every` has."""
    wanted, found = set(names), dict[str, None]()
    others = {end for name in every if name not in wanted for end in _ends(name)}
    for name in names:
        found[next((end for end in _ends(name) if end not in others), name)] = None
    return list(found)


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[first:]) for first in reversed(range(len(parts)))]


def _patterns(values: Mapping[str, Any], every: Sequence[str]) -> dict[str, Any]:
    """Values of modules by regular expressions of the ends of their names."""
    found = {}
    for value in dict.fromkeys(values.values()):
        own = [name for name, one in values.items() if one == value]
        found.update({re.escape(end): value for end in ends(own, every)})
    return found


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number
