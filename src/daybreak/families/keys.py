"""Reading config.json without guessing: every key is read, known to be harmless, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from daybreak.architecture import Activation
from daybreak.errors import DaybreakError

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_HF_ACTIVATION: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
}

_HARMLESS = frozenset(
    [
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
        "output_attentions",
        "attn_pdrop",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "bad_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "cross_attention_hidden_size",
        "tie_encoder_decoder",
        "pruned_heads",
        "encoder_no_repeat_ngram_size",
        "num_beam_groups",
        "problem_type",
        "prefix",
        "max_length",
        "min_length",
    ]
)
"""Keys whose name sounds like mathematics and is none when the model is run."""

_MATHEMATICS = re.compile(
    r"rope|rotary|alibi|position|embed|attn|attention|score|scal|soft|norm|act|gelu|bias|window|sliding|"
    r"sparse|residual|parallel|head|kv|expert|moe|quant|logit|cap|adapter|layer|hidden|width|dim|inner|ffn"
)
"""An unknown key that contains one of these and is set is refused: it may change what the network computes.
"""


_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a word"),
    list: (list, "a list"),
    dict: (dict, "an object of keys"),
}


class Keys:
    """A config.json that notes which of its keys were read."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self._config = config
        self._family = family
        self._read: set[str] = set()

    def get(self, name: str, default: Any, *older: str) -> Any:
        """The value under `name` or an older spelling; `default` where the key is missing or null.

        Raises `DaybreakError` where the value is not of the default's type, or two spellings disagree.
        """
        self._read.update((name, *older))
        spelled = {key: self._config[key] for key in (name, *older) if self._config.get(key) is not None}
        for key, value in spelled.items():
            self._check(key, value, type(default))
        if any(value != next(iter(spelled.values())) for value in spelled.values()):
            both = " and ".join(f"{key} = {value!r}" for key, value in spelled.items())
            raise DaybreakError(
                f"config.json sets {both}, two names of one thing for {self._family}; remove the wrong one"
            )
        return next(iter(spelled.values()), default)

    def _check(self, key: str, value: Any, kind: type) -> None:
        if kind not in _KINDS:
            return
        accepted, spoken = _KINDS[kind]
        odd = not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)
        if odd or (kind is float and not math.isfinite(value)):
            raise DaybreakError(f"config.json sets {key} = {value!r}, where {self._family} needs {spoken}")

    def need(self, name: str, *older: str) -> Any:
        """As `get`, for the numbers without which there is no model."""
        value = self.get(name, None, *older)
        if value is None:
            raise DaybreakError(
                f"config.json has no {name!r}, which {self._family} needs; take the file from "
                f"the checkpoint's source"
            )
        self._check(name, value, int)
        if value < 1:
            raise DaybreakError(f"config.json sets {name} = {value!r}; it must be at least 1")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The key, if present, must have one of the values that are supported; null counts as absent."""
        self._read.add(name)
        value = self._config.get(name)
        if value is not None and value not in allowed:
            choice = " or ".join(map(repr, allowed)) or "no such key"
            raise DaybreakError(
                f"config.json sets {name} = {value!r}, which {self._family} here does not "
                f"support (only {choice}); "
                "the weights would load and compute something else"
            )

    def activation(self, name: str, default: str) -> Activation:
        """The activation named under `name`."""
        value = self.get(name, default)
        if value not in _ACTIVATIONS:
            raise DaybreakError(
                f"config.json sets {name} = {value!r}; known are {', '.join(sorted(_ACTIVATIONS))}"
            )
        return _ACTIVATIONS[value]

    def finish(self, harmless: str = "") -> None:
        """Refuse what is left and sounds like mathematics; `harmless` lists the family's own exceptions."""
        ignored = self._read | _HARMLESS | set(harmless.split())
        left = [key for key, value in self._config.items() if key not in ignored and _is_set(value)]
        refused = [key for key in left if _MATHEMATICS.search(key.lower())]
        if refused:
            key = refused[0]
            raise DaybreakError(
                f"config.json sets {key} = {self._config[key]!r}, which {self._family} here does "
                f"not know; it may change "
                f"what the model computes, so it is not ignored (remove the key if it is only a note)"
            )

    def unread(self) -> dict[str, Any]:
        """What was not asked for."""
        return {key: value for key, value in self._config.items() if key not in self._read}


def refuse_scaled_rotary(parameters: Keys) -> None:
    """What is left of rope_parameters when the family has read its own: only plain positions are known."""
    kind = parameters.get("rope_type", "default", "type")
    if kind != "default" or parameters.unread():
        raise DaybreakError(
            f"config.json sets rope_parameters of type {kind!r} {parameters.unread() or ''}: scaled rotary "
            "positions are not supported; the weights would load and compute something else"
        )


def _is_set(value: object) -> bool:
    return value not in (None, False, {}, [])


def hf_activation(activation: Activation) -> str:
    """The name that config.json uses."""
    return _HF_ACTIVATION[activation]


def repeated(pattern: Iterable[Any], count: int) -> list[Any]:
    """The pattern repeated to `count` entries."""
    parts = list(pattern)
    return [parts[i % len(parts)] for i in range(count)]
