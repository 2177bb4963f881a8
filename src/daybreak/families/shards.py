"""Reading a model's shape off the names and shapes of its tensors, where no config.json says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daybreak.errors import DaybreakError
from daybreak.rules import Shape

Shapes = Mapping[str, Shape]


def layers(shapes: Shapes) -> int:
    """How many layers the names count, from 0 on without a gap."""
    found = {int(match[1]) for name in shapes if (match := re.search(r"(?:^|\.)layers\.(\d+)\.", name))}
    if (gap := min({*range(len(found))} - found, default=None)) is not None:
        raise DaybreakError(
            f"the shards have {len(found)} layers, up to layer {max(found)}, and lack layer {gap}; they are "
            "not of one model"
        )
    return len(found)


def rows(shapes: Shapes, *names: str) -> int:
    """Rows of the tensor that has one of these names. Raises `DaybreakError` where none is there."""
    for name in names:
        if shapes.get(name):
            return shapes[name][0]
    raise DaybreakError(f"the shards have no tensor {names[0]!r}, so the model's shape is not known")


def heads(width: int, head_width: int, settings: Mapping[str, Any], turned: int | None = None) -> int:
    """Heads of attention, which no weight shows: as model_config.json says, or by the head's width as the
    rotary table tells it (`turned`), or by the published one.
    """
    told = settings.get("num_attention_heads")
    if isinstance(told, int) and told > 0:
        if turned and told * turned != width:
            raise DaybreakError(
                f"model_config.json says num_attention_heads {told}, the shards' rotary table has a head's "
                f"width of {turned}, and the model a width of {width}; these do not fit"
            )
        return told
    each = turned or head_width
    if width % each:
        raise DaybreakError(
            f"the shards have a width of {width}, which heads of {each} do not divide, and no file says how "
            "many heads there are; put a model_config.json with num_attention_heads beside the shards"
        )
    return width // each
