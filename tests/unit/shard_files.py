"""Shards of training and packed weights, written by plain loops as their publishers describe them."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import daybreak
from daybreak.language_model import LanguageModel

TINY = {"vocabulary": 64, "context": 32, "layers": 2, "width": 32, "heads": 8, "inner": 48}
LINEAR = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")
Names = dict[str, Tensor]


def gated(seed: int = 1, **changes: Any) -> LanguageModel:
    """A small model of GLM-130B's design, every parameter drawn anew, in float16."""
    return redrawn(daybreak.create("glm_130b", **{**TINY, **changes}), seed)


def redrawn(model: LanguageModel, seed: int) -> LanguageModel:
    """Biases and gains too, which fresh models have at 0 and 1; rounded to float16, kept in float32."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_((drawn + (parameter.dim() == 1)).half())
    return model


def names_of(model: LanguageModel, folder: Path) -> Names:
    """The whole tensors under the names of the family's own files, in float16."""
    from safetensors.torch import load_file

    model.save(folder)
    return {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}


def piece(name: str, tensor: Tensor, rank: int, ranks: int, halves: bool) -> Tensor:
    """What process `rank` of so many holds of a whole tensor."""
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        columns = tensor.shape[1] // ranks
        return tensor[:, rank * columns : (rank + 1) * columns].clone()
    if "dense_h_to_4h" in name and halves:
        first, second = tensor[: len(tensor) // 2], tensor[len(tensor) // 2 :]
        rows = len(first) // ranks
        mine = slice(rank * rows, (rank + 1) * rows)
        return torch.cat([first[mine], second[mine]])
    if "word_embeddings" in name or "query_key_value" in name or "dense_h_to_4h" in name or "lm_head" in name:
        rows = len(tensor) // ranks
        return tensor[rank * rows : (rank + 1) * rows].clone()
    return tensor.clone()


def quantised(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Numbers and scales of a matrix, number by number; four bits two to a byte, the first in the upper."""
    most = 2 ** (bits - 1) - 1
    numbers, scales = [], []
    for row in weight.half():
        scale = (row.abs().max() / most).half()
        rounded = [round(value) for value in (row / scale).tolist()]  # halves to the even number
        if bits == 4:
            rounded = [
                (((upper & 15) << 4) | (lower & 15))
                for upper, lower in zip(rounded[::2], rounded[1::2], strict=True)
            ]
            rounded = [byte - 256 if byte > 127 else byte for byte in rounded]
        numbers.append(rounded)
        scales.append(scale)
    return torch.tensor(numbers, dtype=torch.int8), torch.stack(scales)


def dequantised(weight: Tensor, bits: int) -> Tensor:
    """What is left of a matrix after `quantised`, in float32."""
    most = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.half():
        scale = (row.abs().max() / most).half()
        rows.append(torch.round(row / scale).float() * scale.float())
    return torch.stack(rows)


def packed(names: Names, bits: int | None, also: tuple[str, ...] = ()) -> Names:
    """The names with the linear maps of the layers quantised."""
    if bits is None:
        return names
    result: Names = {}
    for name, tensor in names.items():
        if name.endswith((*LINEAR, *also)):
            result[name], result[f"{name}_scale"] = quantised(tensor, bits)
        else:
            result[name] = tensor
    return result


def write_shards(
    folder: Path,
    names: Names,
    ranks: int,
    *,
    halves: bool = True,
    bits: int | None = None,
    change: Callable[[int, Names], Names] = lambda rank, names: names,
    **entries: Any,
) -> Path:
    """A folder as published: `latest`, and in the folder it names a file for each rank."""
    inside = folder / "49300"
    inside.mkdir(parents=True, exist_ok=True)
    (folder / "latest").write_text("49300")
    for rank in range(ranks):
        mine = {name: piece(name, tensor, rank, ranks, halves) for name, tensor in names.items()}
        state = {"module": change(rank, packed(mine, bits)), **entries}
        torch.save(state, inside / f"mp_rank_{rank:02}_model_states.pt")
    return folder


def of_training() -> dict[str, Any]:
    """What files of training hold beside the tensors."""
    model = torch.nn.Linear(2, 2)
    return {
        "args": argparse.Namespace(fp16=True, callback=print, path=Path("runs")),
        "iteration": 49300,
        "random_rng_state": random.Random(1).getstate(),
        "torch_rng_state": torch.get_rng_state(),
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
        "client_lr_scheduler": {"start_lr": 0.0001, "done": {1, 2}, "kept": frozenset({3})},
    }
