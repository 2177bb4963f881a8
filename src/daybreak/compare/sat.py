"""Models of SwissArmyTransformer, the code that some of these families were published in, on a CPU.

Its files are used as they are. What they expect of a machine with GPUs and a process group is put around
them: nothing of it takes part in the arithmetic, except where a docstring here says so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from daybreak.errors import DaybreakError

DISTRIBUTION = "SwissArmyTransformer"
VERSION = "0.4.12"
COMMAND = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"
"""Without its dependencies: they are for training on a cluster, and no model file uses them."""


def version() -> str:
    """Of the installed distribution. Raises `DaybreakError` with the command where there is none."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise DaybreakError(
            f"verification of this family needs the code that it was published in: {COMMAND}"
        ) from None


@cache
def model_class(place: str) -> Any:
    """The class named by `place`, "module:class"."""
    version()
    _import_without_cluster()
    module, name = place.split(":")
    found = importlib.import_module(module)
    # On a CPU, and without its switches of the compiler, which are global and only about speed.
    switches = SimpleNamespace(**{switch: _nothing for switch in _SWITCHES})
    on_cpu = SimpleNamespace(current_device=lambda: torch.device("cpu"))
    vars(found)["torch"] = _Instead(torch, cuda=on_cpu, _C=switches)
    return getattr(found, name)


_SWITCHES = (
    "_jit_set_profiling_mode",
    "_jit_set_profiling_executor",
    "_jit_override_can_fuse_on_cpu",
    "_jit_override_can_fuse_on_gpu",
)


def _nothing(*arguments: Any, **named: Any) -> None:
    """In place of what is for a cluster, a download or the command line."""


class _Instead:
    """A module of which some names are others."""

    def __init__(self, module: ModuleType, **others: Any) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@cache
def _import_without_cluster() -> None:
    """Only the files of models: the packages' own `__init__` files would import all of the rest as well.

    One process is the whole group, so that no process group has to be opened.
    """
    spec = importlib.util.find_spec("sat")
    root = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
    for name in ("sat", "sat.model", "sat.model.official", "sat.model.position_embedding"):
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    _stand_in("sat.arguments", *_ARGUMENTS)
    _stand_in("sat.resources", "auto_create")
    _stand_in("sat.training.model_io", "load_checkpoint")
    importlib.import_module("sat.helpers")
    logging.getLogger("sat").setLevel(logging.WARNING)
    alone = SimpleNamespace(get_world_size=lambda group=None: 1, get_rank=lambda group=None: 0)
    for name in ("sat.mpu.initialize", "sat.mpu.mappings"):
        vars(importlib.import_module(name))["torch"] = _Instead(torch, distributed=alone)
    groups = vars(sys.modules["sat.mpu.initialize"])
    groups.update(_MODEL_PARALLEL_GROUP="this process", _DATA_PARALLEL_GROUP="this process")
    rotary = importlib.import_module("sat.model.position_embedding.rotary_embeddings")
    vars(sys.modules["sat.model.position_embedding"]).update(
        {name: value for name, value in vars(rotary).items() if not name.startswith("_")}
    )


_ARGUMENTS = (
    "update_args_with_file",
    "overwrite_args_by_dict",
    "set_random_seed",
    "reset_random_seed",
    "_simple_init",
)


def _stand_in(name: str, *functions: str) -> None:
    module = ModuleType(name)
    for function in functions:
        setattr(module, function, _nothing)
    sys.modules[name] = module


class OnCpu(nn.Module):
    """One of its models, reading one text with the positions and the sight that it is given."""

    described: Any
    """What it was built from."""

    def __init__(self, place: str, arguments: dict[str, Any], frequencies: Tensor) -> None:
        """`frequencies` [pairs]: of the rotary positions, where they are not what its files compute."""
        super().__init__()
        self.model = model_class(place)(argparse.Namespace(**_DEFAULTS, **arguments)).float()
        self.frequencies = frequencies
        self.hides = "fp32-softmax" in self.model.mixins
        """It says what is hidden, the others what is seen."""
        if self.hides:
            self.model.add_mixin("boolean-masks", _boolean_masks())
        self.rows = bool(arguments["position_encoding_2d"])

    def forward(self, tokens: Tensor, positions: Tensor, places: Tensor, sight: Tensor) -> Tensor:
        """[length], [length], [length], [length, length] bool (True: seen) -> [length, vocabulary]."""
        dtype = next(self.parameters()).dtype
        for module in self.modules():
            if hasattr(module, "inv_freq"):  # a cast of the model would round them, and keep what it cached
                module.inv_freq = self.frequencies
                vars(module)["max_seq_len_cached"] = None
        both = torch.stack([positions, places])[None] if self.rows else positions[None]
        mask = (~sight if self.hides else sight)[None, None]

        # Its softmax in plain torch ends in half(), which stands for the dtype of the model.
        with patch.object(Tensor, "half", lambda tensor: tensor.to(dtype)):
            found = self.model(input_ids=tokens[None], position_ids=both, attention_mask=mask.to(dtype))
        logits: Tensor = found[0][0]
        return logits


_DEFAULTS = {
    "fp16": False,
    "skip_init": True,
    "model_parallel_size": 1,
    "layernorm_order": "post",
    "no_glu": False,
    "bos_token_id": 0,
    "mask_token_id": 0,
    "gmask_token_id": 0,
    "pad_token_id": 0,
}


def _boolean_masks() -> Any:
    """Its own attention with the mask made boolean again: since it was written, the transformer around it
    began to turn masks into numbers.
    """
    base: Any = importlib.import_module("sat.model.base_model")

    class BooleanMasks(base.BaseMixin):  # type: ignore[misc]
        @base.non_conflict  # type: ignore[untyped-decorator]
        def attention_fn(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Tensor,
            *rest: Any,
            old_impl: Any,
            **named: Any,
        ) -> Any:
            return old_impl(query, key, value, mask.bool(), *rest, **named)

    return BooleanMasks()
