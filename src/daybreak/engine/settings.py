"""How to continue a text: the settings of one call, and what a generation_config.json says about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daybreak.errors import DaybreakError, nearest


@dataclass(frozen=True)
class Sampling:
    """Settings of text generation, validated. Raises `DaybreakError` for values that make no sense."""

    max_new_tokens: int | None = None
    """New tokens at most per text; by default 128, or what max_length leaves."""
    max_length: int | None = None
    """Tokens at most of prompt and continuation together; max_new_tokens goes before it."""
    min_new_tokens: int = 0
    """Until so many tokens are there, neither an end-of-text token nor a stop string ends the text."""
    temperature: float | None = None
    """0 takes the likeliest token each time; 1 samples from the model's own distribution, less is tamer, more
    is wilder. By default 0, or 1 where one of top_k, top_p, min_p, typical_p or several samples are asked
    for."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together hold this probability (nucleus sampling, arXiv
    1904.09751)."""
    min_p: float = 0.0
    """Sample among tokens at least this many times as probable as the likeliest one (arXiv 2407.01082)."""
    typical_p: float = 1.0
    """Sample among the tokens closest to the expected surprise that together hold this probability (arXiv
    2202.00666)."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or output are divided by this if positive, multiplied if negative (arXiv
    1909.05858)."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the output holds already."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that the output holds it."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings, or at a special token that is written so."""
    stop_tokens: tuple[int, ...] = ()
    """Ids that end the text, besides the model's end-of-text tokens."""
    ignore_eos: bool = False
    """Write on past the model's end-of-text tokens."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids that are never chosen."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids that are never chosen as the first new token."""
    seed: int | None = None
    """The same seed gives the same text; by default another one each time."""
    n: int = 1
    """Samples per prompt."""
    logprobs: int | None = None
    """Report each new token's log-probability, and those of this many likeliest tokens beside it."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""

    def __post_init__(self) -> None:
        for name in ("stop", "stop_tokens", "suppress_tokens", "begin_suppress_tokens"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        for name, least in _WHOLE.items():
            _check_whole(name, getattr(self, name), least)
        for name, (lowest, highest) in _REAL.items():
            _check_real(name, getattr(self, name), lowest, highest)
        for name, kind in _ENTRIES.items():
            for entry in getattr(self, name):
                if not isinstance(entry, kind) or entry == "" or (isinstance(entry, int) and entry < 0):
                    wanted = "texts of at least one character" if kind is str else "token ids"
                    raise DaybreakError(f"{name} holds {entry!r}; give {wanted}")
        if self.greedy and self.n > 1:
            raise DaybreakError(
                f"n is {self.n}, but at temperature 0 all samples are the same; set temperature"
            )

    @property
    def heat(self) -> float:
        """The temperature with its default filled in."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.n > 1 or self.narrowed else 0.0

    @property
    def greedy(self) -> bool:
        """The likeliest token is taken; temperatures below 1e-5 are 0."""
        return self.heat < 1e-5

    @property
    def narrowed(self) -> bool:
        """Some tokens are kept from being sampled for their rank or probability."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.typical_p < 1.0

    def room(self, prompt: int) -> int:
        """New tokens that these settings allow after a prompt of that many tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return 128
        if prompt >= self.max_length:
            raise DaybreakError(
                f"the prompt has {prompt} tokens and max_length is {self.max_length}, so no room is left; "
                "set max_new_tokens"
            )
        return self.max_length - prompt


_WHOLE: dict[str, float] = {
    "max_new_tokens": 0,
    "max_length": 1,
    "min_new_tokens": 0,
    "top_k": 0,
    "seed": -math.inf,
    "n": 1,
    "logprobs": 0,
    "prompt_logprobs": 0,
}
"""Whole numbers and the least that each may be."""
_REAL: dict[str, tuple[float, float]] = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.0, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
}
_POSITIVE = ("typical_p", "repetition_penalty")
_ENTRIES = {"stop": str, "stop_tokens": int, "suppress_tokens": int, "begin_suppress_tokens": int}


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str | int) else tuple(value)


def _check_whole(name: str, value: Any, low: float) -> None:
    if value is None and Sampling.__dataclass_fields__[name].default is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        least = "" if low == -math.inf else f" of at least {low}"
        raise DaybreakError(f"{name} is {value!r}; it must be a whole number{least}")


def _check_real(name: str, value: Any, low: float, high: float) -> None:
    if value is None and Sampling.__dataclass_fields__[name].default is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (name in _POSITIVE and value == 0):
        least = "above 0" if name in _POSITIVE else f"at least {low:g}"
        bounds = (
            ""
            if low == -math.inf
            else f" of {least}" + ("" if high == math.inf else f" and at most {high:g}")
        )
        raise DaybreakError(f"{name} is {value!r}; it must be a number{bounds}")


# generation_config.json ----------------------------------------

_SAME_NAME = (
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)
_FILTERS = ("top_k", "top_p", "min_p", "typical_p")
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "top_h": (),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "token_healing": (False,),
    "max_time": (),
}
"""Keys that change the text and are not supported, each with the values at which it does nothing."""


def resolve(generation: Mapping[str, Any], given: Mapping[str, Any]) -> Sampling:
    """The settings of one call: those `given` by the caller, then generation_config.json's, then our own.

    `generation` is generation_config.json as it was read. Raises `DaybreakError` for an unknown setting, and
    for a key of the file that would change the text and is not supported.
    """
    names = [field.name for field in dataclasses.fields(Sampling)]
    for name in given:
        if name not in names:
            raise DaybreakError(
                f"no setting {name!r} of text generation{nearest(name, names)}; there are {', '.join(names)}"
            )
    chosen = {name: value for name, value in given.items() if value is not None}
    merged = {**_published(generation, chosen), **chosen}
    chance = Sampling(**{name: chosen[name] for name in (*_FILTERS, "n") if name in chosen})
    if "temperature" not in chosen and chance.greedy and not generation.get("do_sample"):
        merged["temperature"] = 0.0  # what the file says about sampling speaks to those who sample
    merged.setdefault("temperature", 1.0)
    return Sampling(**merged)


def _published(generation: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    for key, idle in _UNSUPPORTED.items():
        value = generation.get(key)
        if value is not None and value != [] and value not in idle:
            raise DaybreakError(
                f"generation_config.json sets {key} = {value!r}, which is not supported and would change the "
                "text; leave the file's settings aside with defaults=False (--no-defaults)"
            )
    values = {name: generation[name] for name in _SAME_NAME if generation.get(name) is not None}
    if generation.get("stop_strings") is not None:
        values["stop"] = generation["stop_strings"]
    if "max_length" in chosen:
        values.pop("max_new_tokens", None)
    return values
