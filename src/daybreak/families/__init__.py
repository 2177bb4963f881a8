"""The history of the field, one page per family; read in order: ulmfit, gpt, gpt2, gpt3, gpt_neo, gpt_j, glm,
gpt_neox, opt, bloom, glm_130b, chatglm, llama. The first is an LSTM, all others are the one decoder's.

This registry imports a page only when it is asked for, and is the one place where families are listed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from daybreak.errors import DaybreakError, nearest
from daybreak.families.family import Family, Size
from daybreak.families.recurrent import RecurrentFamily, RecurrentSize

NAMES = (
    "gpt",
    "gpt2",
    "gpt3",
    "gpt_neo",
    "gpt_j",
    "glm",
    "gpt_neox",
    "opt",
    "bloom",
    "glm_130b",
    "chatglm",
    "llama",
)
RECURRENT = ("ulmfit",)
"""Families of another network, with pages of another shape; commands that take a decoder refuse them."""
FIRST_TO_TRAIN = "gpt_neox"
"""What a newcomer trains who names no family."""
_MODEL_TYPES = {
    "openai-gpt": "gpt",
    "gpt2": "gpt2",
    "gpt3": "gpt3",
    "gpt_neo": "gpt_neo",
    "gptj": "gpt_j",
    "gpt_neox": "gpt_neox",
    "opt": "opt",
    "bloom": "bloom",
    "glm": "glm",
    "glm-130b": "glm_130b",
    "chatglm": "chatglm",
    "llama": "llama",
}
_RECURRENT_TYPES = {"awd_lstm": "ulmfit"}


def by_name(name: str) -> Family:
    """The page of a family; `gpt-neox` and `gpt_neox` are the same."""
    key = name.lower().replace("-", "_")
    if key in RECURRENT:
        raise DaybreakError(
            f"{key} is an LSTM, and this is for transformers; `daybreak {key} --help` has its commands, "
            "and daybreak.create and daybreak.load make and open its models"
        )
    if key not in NAMES:
        raise DaybreakError(f"no family {name!r}{nearest(key, NAMES)}; there are {', '.join(NAMES)}")
    page = importlib.import_module(f"daybreak.families.{key}")
    family: Family = page.FAMILY
    return family


def by_model_type(model_type: str) -> Family:
    """The family that reads a config.json with this `model_type`."""
    if model_type in _RECURRENT_TYPES:
        return by_name(_RECURRENT_TYPES[model_type])  # which says what to do instead
    if model_type not in _MODEL_TYPES:
        raise DaybreakError(
            f"config.json says model_type {model_type!r}{nearest(model_type, _MODEL_TYPES)}; "
            f"supported are {', '.join(_MODEL_TYPES)}"
        )
    return by_name(_MODEL_TYPES[model_type])


def remote_code(model_type: str) -> tuple[str, ...]:
    """Modules of code in published repositories of this `model_type` that a page here replaces."""
    return by_name(_MODEL_TYPES[model_type]).remote_code if model_type in _MODEL_TYPES else ()


def everyone() -> Iterator[Family]:
    """All families in the order of history."""
    return map(by_name, NAMES)


def find_size(name: str) -> tuple[Family, Size] | None:
    """The published model of this name, whatever its family and case; None if there is none."""
    for family in everyone():
        for size, entry in family.sizes.items():
            if size.lower() == name.lower():
                return family, entry
    return None


def recurrent(name: str) -> RecurrentFamily | None:
    """The page of a recurrent family by its name or the `model_type` of its config.json; None: it is none."""
    key = _RECURRENT_TYPES.get(name, name.lower().replace("-", "_"))
    if key not in RECURRENT:
        return None
    family: RecurrentFamily = importlib.import_module(f"daybreak.families.{key}").FAMILY
    return family


def recurrents() -> Iterator[RecurrentFamily]:
    """All recurrent families in the order of history."""
    return (page for page in map(recurrent, RECURRENT) if page is not None)


def find_recurrent_size(name: str) -> tuple[RecurrentFamily, str, RecurrentSize] | None:
    """The published recurrent model of this name, whatever its case, as `find_size`."""
    for family in recurrents():
        for size, entry in family.sizes.items():
            if size.lower() == name.lower():
                return family, size, entry
    return None
