"""What a checkpoint of training holds: weights, optimizer state and moving average as one tree, by parameter
names, so that it can be read into any other layout of the same model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder

_GROUP = "/params"
"""Where a group of an optimizer names its parameters."""
_WAYS = ("/fused", "/foreach", "/capturable", "/differentiable")
"""Options of a group that say how a step is computed, not what: another layout may need another way."""


def tensors_of(
    decoder: Decoder, optimizers: Sequence[Optimizer], ema: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """The state of training as a tree of tensors and numbers: `model`, `optimizer` (state and groups of all
    optimizers, by parameter names) and `ema`.

    Its tensors are those of training themselves, not copies, and DTensors where the model is cut: `save` of
    `Checkpoints` copies them, `load` fills them in place. Call it between two steps. With several processes
    all have to call it.
    """
    for optimizer in optimizers:
        complete(optimizer)
    tensors: dict[str, Any] = {"model": get_model_state_dict(decoder)}
    if optimizers:
        tensors["optimizer"] = get_optimizer_state_dict(decoder, list(optimizers))
    if ema is not None:
        tensors["ema"] = dict(ema)
    return tensors


def put_back(
    tensors: Mapping[str, Any],
    decoder: Decoder,
    optimizers: Sequence[Optimizer],
    ema: Mapping[str, Tensor] | None = None,
) -> None:
    """The inverse of `tensors_of`, after `Checkpoints.load` has filled the tree."""
    set_model_state_dict(decoder, tensors["model"])
    if optimizers:
        set_optimizer_state_dict(decoder, list(optimizers), tensors["optimizer"])
    with torch.no_grad():
        for name, average in (ema or {}).items():
            average.copy_(tensors["ema"][name])


def complete(optimizer: Optimizer) -> None:
    """Give `optimizer` the state of all its parameters. Optimizers make it when a parameter first has a
    gradient; here what is missing is made at once, as it would be then: all zeros, no step counted. Only so
    have a fresh and an old optimizer the same tree.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]
    missing = [one for one in parameters if not optimizer.state.get(one)]
    if not missing:
        return
    gradients = [one.grad for one in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    for one in parameters:
        one.grad = None
    for one in missing:
        one.grad = torch.zeros_like(one)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    # A step without gradient at the rate 0 changes no weight: torch's own way to make the state.
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for one, gradient in zip(parameters, gradients, strict=True):
        one.grad = gradient
    for one in missing:
        for value in optimizer.state[one].values():
            value.zero_()


def flatten(tree: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a tree and its other values, each by its path: `optimizer/state/NAME/exp_avg`."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for path, _, _, value in _leaves(tree, ""):
        (tensors if isinstance(value, Tensor) else values)[path] = value
    return tensors, values


def set_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Put `values`, as `flatten` gave them and JSON kept them, into the tree.

    A value that the tree has and `values` lacks stays: a newer torch may know more options. So does the way
    in which an optimizer computes (fused or not). Raises `DaybreakError` where the optimizers' groups are of
    other parameters.
    """
    known = {path: (parent, key) for path, parent, key, value in _leaves(tree, "") if _plain(value)}
    for path in known.keys() | values.keys():
        if path.endswith(_GROUP) and _names(known, path) != sorted(values.get(path, [])):
            raise DaybreakError(
                f"the checkpoint's optimizers group the parameters in another way ({path.split('/')[-2]}); "
                "continue with the optimizer that the run was started with"
            )
    for path, value in values.items():
        if path in known and not path.endswith(_WAYS):
            parent, key = known[path]
            parent[key] = tuple(value) if isinstance(parent[key], tuple) else value


def _names(known: Mapping[str, tuple[Any, Any]], path: str) -> list[str]:
    if path not in known:
        return []
    parent, key = known[path]
    return sorted(parent[key])


def _plain(value: Any) -> bool:
    return not isinstance(value, Tensor)


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """(path, what holds the leaf, its key there, the leaf)."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in items:
        here = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping) or (isinstance(value, list) and _holds_more(value)):
            yield from _leaves(value, here)
        else:
            yield here, tree, key, value


def _holds_more(items: Sequence[Any]) -> bool:
    return any(isinstance(one, Mapping | list | Tensor) for one in items)
