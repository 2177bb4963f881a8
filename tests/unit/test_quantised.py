"""Weights of eight and four bits, as the hub's files hold them: numbers, scales, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import daybreak
from daybreak import parameters
from daybreak.checkpoint.rows import nibbles
from daybreak.compare.describe import describe
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from tests.unit.shard_files import LINEAR, Names, dequantised, names_of, packed, quantised, redrawn

SHAPE = {"vocabulary": 64, "context": 16, "layers": 2, "width": 32, "heads": 4, "inner": 64}
TOKENS = torch.tensor([[1, 2, 3, 59, 63, 5, 6]])
TABLES = ("word_embeddings.weight", "lm_head.weight")
DENSE = "transformer.layers.0.attention.dense.weight"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return redrawn(daybreak.create("chatglm", **SHAPE), 5)


def write(
    model: LanguageModel, folder: Path, bits: int, tables: bool = False, pickled: bool = True, **config: Any
) -> Path:
    """A folder as the hub's -int8, -int4 and (with `tables`) -int4-qe repositories."""
    names = packed(names_of(model, folder), bits, TABLES if tables else ())
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(names, folder / "pytorch_model.bin")
    else:
        save_file(names, folder / "model.safetensors")
    said = {"quantization_bit": bits, "quantization_embeddings": tables, "torch_dtype": "float16", **config}
    edit_config(folder, **said)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": None, **changes}))


def expected(model: LanguageModel, folder: Path, bits: int, tables: bool = False) -> LanguageModel:
    """The model with every quantised matrix replaced by what is left of it."""
    names = names_of(model, folder)
    kinds = (*LINEAR, *TABLES) if tables else LINEAR
    left = {name: dequantised(t, bits) if name.endswith(kinds) else t.float() for name, t in names.items()}
    save_file(left, folder / "model.safetensors")
    return daybreak.load(folder)


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        daybreak.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(("bits", "tables"), [(8, False), (4, False), (4, True)])
@pytest.mark.parametrize("pickled", [True, False])
def test_the_logits_are_those_of_what_is_left(
    bits: int, tables: bool, pickled: bool, model: LanguageModel, tmp_path: Path
) -> None:
    loaded = daybreak.load(write(model, tmp_path / "packed", bits, tables, pickled))
    left = expected(model, tmp_path / "left", bits, tables)
    assert torch.equal(loaded.logits(TOKENS), left.logits(TOKENS))
    for one, other in zip(loaded.decoder.parameters(), left.decoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(loaded.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_one_rounding_into_the_dtype_asked_for(dtype: str, model: LanguageModel, tmp_path: Path) -> None:
    """In float16 that is what the published kernels compute: the rounded product of number and scale."""
    loaded = daybreak.load(write(model, tmp_path / "packed", 8), dtype=dtype)
    exact = daybreak.load(tmp_path / "packed")
    for one, other in zip(loaded.decoder.parameters(), exact.decoder.parameters(), strict=True):
        assert one.dtype == getattr(torch, dtype) and torch.equal(one, other.to(one.dtype))


def test_what_is_saved_is_no_longer_packed(model: LanguageModel, tmp_path: Path) -> None:
    loaded = daybreak.load(write(model, tmp_path / "packed", 4), dtype="auto")
    assert loaded.dtype == torch.float16
    loaded.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_bit" not in config and "quantization_embeddings" not in config
    again = daybreak.load(tmp_path / "saved")
    assert torch.equal(again.logits(TOKENS), loaded.decoder.float() and loaded.logits(TOKENS))


@given(st.lists(st.lists(st.integers(-8, 7), min_size=4, max_size=4), min_size=1, max_size=5))
def test_nibbles(numbers: list[list[int]]) -> None:
    """Number 2i in the upper four bits of byte i, number 2i + 1 in the lower; both have a sign."""
    rows = []
    for row in numbers:
        found = [((row[i] & 15) << 4) | (row[i + 1] & 15) for i in range(0, len(row), 2)]
        rows.append([byte - 256 if byte > 127 else byte for byte in found])
    assert nibbles(torch.tensor(rows, dtype=torch.int8)).tolist() == numbers


def test_the_quantiser_of_these_tests() -> None:
    """By hand: 7 is the largest, halves go to the even number, the first number is the upper nibble."""
    numbers, scales = quantised(torch.tensor([[7.0, -7.0, 2.5, 1.5], [0.5, 14.0, -14.0, 2.0]]), 4)
    assert scales.tolist() == [1.0, 2.0]
    assert numbers.tolist() == [[0x79, 0x22], [0x07, -0x6F]]
    assert nibbles(numbers).tolist() == [[7, -7, 2, 2], [0, 7, -7, 1]]


def test_a_scale_is_missing(model: LanguageModel, tmp_path: Path) -> None:
    folder = write(model, tmp_path, 8, pickled=False)
    change(folder, lambda names: names.pop(f"{DENSE}_scale"))
    refused(folder, "model.safetensors", f"'{DENSE}'", f"'{DENSE}_scale'", "missing")


def test_a_scale_of_another_length(model: LanguageModel, tmp_path: Path) -> None:
    folder = write(model, tmp_path, 8, pickled=False)
    change(folder, lambda names: names.update({f"{DENSE}_scale": torch.ones(16).half()}))
    refused(folder, f"'{DENSE}_scale'", "[16]", "32 rows")
    change(folder, lambda names: names.update({f"{DENSE}_scale": torch.ones(32, dtype=torch.int32)}))
    refused(folder, f"'{DENSE}_scale'", "int32", "floating point")


def test_a_scale_without_numbers(model: LanguageModel, tmp_path: Path) -> None:
    folder = write(model, tmp_path, 8, pickled=False)
    change(folder, lambda names: names.update({DENSE: torch.ones(32, 32).half()}))
    refused(folder, f"'{DENSE}_scale'", "no place")


def test_four_bits_in_rows_of_odd_width(tmp_path: Path) -> None:
    shape = {**SHAPE, "inner": 63}
    folder = write(redrawn(daybreak.create("chatglm", **shape), 6), tmp_path, 8, pickled=False)
    name = "transformer.layers.0.mlp.dense_4h_to_h.weight"
    change(folder, lambda names: names.update({name: torch.ones(32, 32, dtype=torch.int8)}))
    refused(folder, f"'{name}'", "[32, 32]", "[32, 63]", "63 numbers of four bits do not fill whole bytes")


@pytest.mark.parametrize(
    ("told", "part"),
    [(3, "quantization_bit = 3"), (4, "quantization_bit 4, the checkpoint has weights of 8 bits")],
)
def test_config_and_file_disagree(told: int, part: str, model: LanguageModel, tmp_path: Path) -> None:
    folder = write(model, tmp_path, 8)
    edit_config(folder, quantization_bit=told)
    refused(folder, part)


def test_config_says_packed_and_nothing_is(model: LanguageModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    edit_config(tmp_path, quantization_bit=0)
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))
    edit_config(tmp_path, quantization_bit=4)
    refused(tmp_path, "quantization_bit 4", "has no such weights")


def change(folder: Path, edit: Any) -> None:
    names: Names = load_file(folder / "model.safetensors")
    edit(names)
    save_file(names, folder / "model.safetensors")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["glm_130b", "chatglm"])
def test_the_bytes_that_are_told(family: str, bits: int, tmp_path: Path) -> None:
    """Counted in a checkpoint that is packed as the published ones."""
    made = daybreak.create(family, **SHAPE)
    names = packed(names_of(made, tmp_path), bits)
    held = sum(tensor.numel() * tensor.element_size() for tensor in names.values())
    assert parameters.packed_bytes(made.architecture, bits) == held


def test_the_published_size_packed() -> None:
    """Tables, norms and biases stay in float16, and each row of a matrix has a scale."""
    told = describe("glm-130b")
    assert told["parameters"]["total"] == 128_697_794_560
    assert told["weight_bytes"]["float16"] == 2 * 128_697_794_560
    scales = 70 * (4 * 12288 + 2 * 32768 + 12288)
    matrices = 70 * (4 * 12288**2 + 3 * 12288 * 32768)
    rest = 128_697_794_560 - matrices
    expected = {"int8": matrices + 2 * (rest + scales), "int4": matrices // 2 + 2 * (rest + scales)}
    assert told["packed_weight_bytes"] == expected
    assert "packed_weight_bytes" not in describe("gpt2")
