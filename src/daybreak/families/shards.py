"""Reading a model's shape off the names and shapes of its tensors, where no config.json says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daybreak.errors import DaybreakError
from daybreak.rules import COLUMNS, ROWS, Cut, Shape

Shapes = Mapping[str, Shape]


def cuts(queries: Cut = ROWS, up: Cut = ROWS) -> dict[str, Cut]:
    """How tensor-parallel training cuts a block: its first maps along their outputs, its last ones along
    their inputs. `queries` is the cut of queries, keys and values together, `up` of the MLP's first map.

    Norms, and the biases of the maps that are cut along their inputs, are whole in every shard.
    """
    attention, mlp = "layers.{i}.attention", "layers.{i}.mlp"
    return {
        "word_embeddings.weight": ROWS,
        f"{attention}.query_key_value.weight": queries,
        f"{attention}.query_key_value.bias": queries,
        f"{attention}.dense.weight": COLUMNS,
        f"{mlp}.dense_h_to_4h.weight": up,
        f"{mlp}.dense_h_to_4h.bias": up,
        f"{mlp}.dense_4h_to_h.weight": COLUMNS,
    }


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
