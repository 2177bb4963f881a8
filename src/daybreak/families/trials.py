"""Shapes in which each family is compared with the reference.

Every number is distinct and differs from the reference's default, so that none can be swapped with another or
left unread without being noticed: odd head counts, an inner width that is not four times the width, a norm
eps of 1e-3, windows shorter than the text, rotary fractions.
"""

from __future__ import annotations

from typing import Any

from daybreak.architecture import Architecture, Blanks, Rotary
from daybreak.families import by_name

_PLAIN: dict[str, Any] = {
    "vocabulary": 97,
    "context": 43,
    "layers": 3,
    "width": 40,
    "heads": 5,
    "inner": 72,
    "norm_eps": 1e-3,
}
_NO_BIAS: frozenset[str] = frozenset()
_MARKS: dict[str, Any] = {"start": 91, "end": 95, "mask": 88, "rest": 93, "sentence": 90}
_TURNED: dict[str, Any] = {"width": 60, "context": 143}
"""Heads so wide and texts so long that frequencies rounded to float16 are told from exact ones."""

REFERENCES = {
    "glm": "loops",
    "glm_130b": "SAT/sat.model.official.glm130B_model:GLM130B",
    "chatglm": "SAT/sat.model.official.chatglm_model:ChatGLMModel",
}
"""Where it is not transformers: loops from the paper, or a model of SwissArmyTransformer."""

TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "gpt": {
        "plain": {"inner": 160},
        "relu, untied": {"inner": 168, "width": 42, "heads": 7, "activation": "relu", "tied": False},
    },
    "gpt2": {
        "plain": {},
        "scores by layer": {"layer_scaled_scores": True, "activation": "gelu"},
        "unscaled scores": {"scaled_scores": False, "width": 33, "heads": 3},
        "relu, untied": {"activation": "relu", "tied": False, "heads": 1},
        "silu, unscaled by layer": {
            "activation": "silu",
            "layer_scaled_scores": True,
            "scaled_scores": False,
        },
    },
    "gpt_neo": {
        "every second layer local": {"windows": (None, 6, None)},
        "two local in front": {"windows": (5, 5, None), "activation": "relu", "width": 42, "heads": 7},
        "window of two": {"windows": (None, 2, 2), "tied": False},
        "all global": {"windows": (None, None, None), "activation": "gelu"},
    },
    "gpt_j": {
        "half rotary": {"positions": Rotary(4, "neighbours")},
        "full rotary": {"positions": Rotary(14, "neighbours"), "width": 42, "heads": 3, "activation": "gelu"},
        "least rotary": {"positions": Rotary(2, "neighbours"), "heads": 4, "activation": "relu"},
    },
    "gpt_neox": {
        "parallel": {"positions": Rotary(4, "halves", 5000.0)},
        "serial": {"positions": Rotary(6, "halves", 300.0), "block": "pre"},
        "tied, full rotary": {
            "positions": Rotary(8, "halves", 77.0),
            "tied": True,
            "activation": "gelu_tanh",
        },
        "no attention bias": {
            "positions": Rotary(2, "halves", 50.0),
            "width": 42,
            "heads": 3,
            "biases": frozenset({"mlp"}),
        },
        "serial, relu": {
            "positions": Rotary(2, "halves", 20.0),
            "block": "pre",
            "activation": "relu",
            "heads": 10,
        },
    },
    "opt": {
        "plain": {},
        "350m: norms after, narrow embedding": {"block": "post", "final_norm": False, "embedding_width": 24},
        "wide embedding": {"embedding_width": 56, "width": 42, "heads": 7},
        "Galactica: gelu, no biases": {"activation": "gelu", "biases": _NO_BIAS},
        "Galactica, norms without gain": {"activation": "gelu", "biases": _NO_BIAS, "norm_affine": False},
        "no final norm": {"final_norm": False, "tied": False},
    },
    "bloom": {
        "five heads": {"inner": 160},
        "twelve heads": {"width": 48, "heads": 12, "inner": 192},
        "eight heads, untied": {"heads": 8, "inner": 160, "tied": False},
        "residual from the norm": {"width": 42, "heads": 3, "inner": 168, "residual": "normed"},
    },
    "glm": {
        "exact gelu": {"blanks": Blanks(**_MARKS)},
        "gelu by tanh": {
            "blanks": Blanks(**_MARKS),
            "activation": "gelu_tanh",
            "width": 42,
            "heads": 7,
            "layers": 2,
        },
        "no mask of sentences": {"blanks": Blanks(**{**_MARKS, "sentence": None}), "layers": 2},
    },
    "glm_130b": {
        "five heads": {**_TURNED, "blanks": Blanks(**_MARKS, runs_on=True)},
        "three heads": {
            **_TURNED,
            "blanks": Blanks(**_MARKS, runs_on=True),
            "width": 48,
            "heads": 3,
            "layers": 4,
        },
    },
    "chatglm": {
        "three heads": {**_TURNED, "blanks": Blanks(**_MARKS), "heads": 3},
        "exact frequencies": {
            **_TURNED,
            "blanks": Blanks(**_MARKS),
            "positions": Rotary(12, "halves", blocks=True),
            "width": 48,
            "heads": 2,
        },
        "as first released": {
            **_TURNED,
            "blanks": Blanks(**_MARKS, runs_on=True),
            "heads": 5,
            "layers": 2,
        },
    },
    "llama": {
        "all heads": {},
        "shared heads": {"width": 48, "heads": 6, "key_heads": 2, "positions": Rotary(8, "halves", 500.0)},
        "one head of keys, tied": {
            "width": 42,
            "heads": 7,
            "key_heads": 1,
            "tied": True,
            "positions": Rotary(6, "halves", 90.0),
        },
        "biases, gelu": {
            "biases": frozenset({"qkv", "out", "mlp"}),
            "activation": "gelu_tanh",
            "positions": Rotary(8, "halves", 77.0),
        },
    },
}

ALONE: dict[str, dict[str, dict[str, Any]]] = {"gpt3": {"dense and banded in turn": {"windows": (None, 6)}}}
"""Of families without a reference: what their own float32 is compared with."""


def trials(name: str) -> dict[str, Architecture]:
    """Label -> architecture of the shapes in which the family `name` is compared; none where there is no
    reference.
    """
    return _shapes(name, TRIALS)


def alone(name: str) -> dict[str, Architecture]:
    """The same of a family that has no reference."""
    return _shapes(name, ALONE)


def _shapes(name: str, table: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Architecture]:
    family = by_name(name)
    found = {}
    for label, changes in table.get(family.name, {}).items():
        fixed = {"norm_eps": 1e-5} if family.name == "opt" else {}  # its reference has no such key
        found[label] = family.architecture(**{**_PLAIN, **fixed, **changes})
    return found
