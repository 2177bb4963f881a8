"""Whatever is wrong with a checkpoint, one error names file, tensor and remedy; nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import daybreak
from daybreak.errors import DaybreakError

FIRST = "transformer.h.0.ln_1.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = {"vocabulary": 31, "context": 8, "layers": 2, "width": 12, "heads": 2, "inner": 48}
    daybreak.create("gpt2", **shape).save(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def refused(folder: Path | str, *parts: str, **options: Any) -> None:
    """Loading raises one line that holds all `parts`."""
    with pytest.raises(DaybreakError) as caught:
        daybreak.load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def header_of(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


# config.json


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, str(folder), "no config.json")


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2",')
    refused(folder, str(folder / "config.json"), "not valid JSON", "line 1", "fetch it again")


def test_config_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json", "list")


def test_config_that_is_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "config.json", "not text")


def test_config_without_family(folder: Path) -> None:
    edit_config(folder, model_type=None)
    refused(folder, "config.json", "model_type")


def test_unknown_family(folder: Path) -> None:
    edit_config(folder, model_type="gpt-2")
    refused(folder, "'gpt-2'", "did you mean 'gpt2'?", "bloom")


@pytest.mark.parametrize("model_type", ["gpt2", "somebody_s"])
def test_code_of_a_checkpoint_is_refused(model_type: str, folder: Path) -> None:
    edit_config(folder, model_type=model_type, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    ran = folder / "ran"
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w')")
    refused(folder, "config.json", "auto_map", "nothing from a checkpoint is executed")
    assert not ran.exists()


def test_broken_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    refused(folder, "generation_config.json", "not valid JSON")


def test_unknown_dtype(folder: Path) -> None:
    refused(folder, "dtype", "'fp32'", "float32", "auto", dtype="fp32")
    with pytest.raises(DaybreakError, match="dtype is 'auto'"):
        daybreak.create("gpt2", dtype="auto", layers=1, width=12, heads=2, vocabulary=9)


@pytest.mark.parametrize("dtype", [["float32"], 32])
def test_a_dtype_in_config_that_is_no_name_is_passed_over(dtype: object, folder: Path) -> None:
    edit_config(folder, dtype=dtype, torch_dtype=None)
    assert daybreak.load(folder, dtype="auto").dtype == torch.float32


@pytest.mark.parametrize("device", ["foo", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there(device: str, folder: Path) -> None:
    refused(folder, f"device is {device!r}", "give cpu", device=device)
    with pytest.raises(DaybreakError, match=f"device is {device!r}"):
        daybreak.create("gpt2", device=device, layers=1, width=12, heads=2, vocabulary=9)


# Which files there are


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "no weights", "model.safetensors", "pytorch_model.bin")


def sharded(folder: Path) -> Path:
    daybreak.load(folder).save(folder, shard_size="6KB")
    return folder / "model.safetensors.index.json"


def test_missing_shard(folder: Path) -> None:
    sharded(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(folder, shard.name, "missing", "index.json")


def test_index_that_names_a_missing_tensor(folder: Path) -> None:
    index = sharded(folder)
    contents = json.loads(index.read_text())
    contents["weight_map"]["extra.weight"] = sorted(contents["weight_map"].values())[0]
    index.write_text(json.dumps(contents))
    refused(folder, "index.json", "'extra.weight'", "model-00001-of")


def test_index_without_a_map(folder: Path) -> None:
    index = sharded(folder)
    index.write_text('{"metadata": {}}')
    refused(folder, "index.json", "weight_map")


def test_index_that_leads_out_of_the_folder(folder: Path) -> None:
    index = sharded(folder)
    contents = json.loads(index.read_text())
    contents["weight_map"][FIRST] = "../secret.safetensors"
    index.write_text(json.dumps(contents))
    refused(folder, "index.json", "../secret.safetensors", "outside the folder")


# Damaged files


def test_truncated_data(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, str(file), "before the end of its tensor", "fetch it again")


@pytest.mark.parametrize(
    "contents", [b"", b"\x01", b"\xff" * 200, b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_file_that_is_no_safetensors(contents: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(contents)
    refused(
        folder, str(folder / "model.safetensors"), "does not start with a table of tensors", "fetch it again"
    )


def test_truncated_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    refused(folder, str(file), "does not start with a table of tensors")


def test_offsets_that_do_not_fit_the_shape(folder: Path) -> None:
    file = folder / "model.safetensors"
    header_of(file, lambda header: header[FIRST].update(shape=[13]))
    refused(folder, str(file), FIRST, "[13]", "48 bytes")


def test_a_description_that_is_none(folder: Path) -> None:
    file = folder / "model.safetensors"
    header_of(file, lambda header: header.update({FIRST: {"dtype": "F32"}}))
    refused(folder, str(file), FIRST, "fetch it again")


def test_an_unknown_dtype(folder: Path) -> None:
    file = folder / "model.safetensors"
    header_of(file, lambda header: header[FIRST].update(dtype="F4"))
    refused(folder, str(file), FIRST, "F4", "BF16")


def test_overflowing_shapes(folder: Path) -> None:
    file = folder / "model.safetensors"
    header_of(file, lambda header: header[FIRST].update(shape=[-12, -1]))
    refused(folder, str(file), FIRST, "[-12, -1]")


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_offsets": ["0", "48"]},
        {"data_offsets": [0, 48.0]},
        {"data_offsets": {"0": 1, "48": 2}},
        {"dtype": ["F32"]},
        {"shape": ["12"]},
        {"shape": [12.5]},
        {"shape": "12"},
        {"shape": [True]},
    ],
)
def test_a_description_of_other_types(wrong: dict[str, Any], folder: Path) -> None:
    file = folder / "model.safetensors"
    header_of(file, lambda header: header[FIRST].update(wrong))
    refused(folder, str(file), FIRST, "fetch it again")


@pytest.mark.parametrize("shard", [3, None, ["model-00001-of-00002.safetensors"]])
def test_an_index_whose_shards_are_no_names(shard: object, folder: Path) -> None:
    index = sharded(folder)
    contents = json.loads(index.read_text())
    contents["weight_map"][FIRST] = shard
    index.write_text(json.dumps(contents))
    refused(folder, "index.json", FIRST, repr(shard), "fetch it again")


# Tensors


def test_missing_tensor(folder: Path) -> None:
    edit_weights(folder, lambda state: state.pop(FIRST))
    refused(folder, str(folder), repr(FIRST), "incomplete", "config.json")


def test_many_missing_tensors(folder: Path) -> None:
    edit_config(folder, n_layer=3)
    refused(folder, "'transformer.h.2.ln_1.weight'", "and 9 more")


def test_unexpected_tensor(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"transformer.h.0.ln_3.weight": torch.ones(12)}))
    refused(folder, "'transformer.h.0.ln_3.weight'", "GPT-2", "did you mean 'transformer.h.0.ln_")


def test_a_layer_too_many(folder: Path) -> None:
    edit_config(folder, n_layer=1)
    refused(folder, "'transformer.h.1.attn.c_attn.bias'", "and 9 more", "another model")


def test_wrong_shape(folder: Path) -> None:
    edit_config(folder, n_inner=50)
    file = str(folder / "model.safetensors")
    refused(folder, file, "'transformer.h.0.mlp.c_fc.bias'", "[48]", "[50]", "same checkpoint")


def test_transposed_matrix(folder: Path) -> None:
    def transpose(state: dict[str, torch.Tensor]) -> None:
        state["transformer.h.1.mlp.c_fc.weight"] = state["transformer.h.1.mlp.c_fc.weight"].t().contiguous()

    edit_weights(folder, transpose)
    refused(folder, "'transformer.h.1.mlp.c_fc.weight'", "[48, 12]", "[12, 48]")


def test_quantised_tensor(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({FIRST: torch.ones(12, dtype=torch.int8)}))
    refused(folder, repr(FIRST), "int8", "quantised", "float32")


def test_two_names_of_one_tensor(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"h.0.ln_1.weight": torch.ones(12)}))
    refused(folder, repr(FIRST), "'h.0.ln_1.weight'", "remove one")


def test_a_head_that_differs_from_the_embedding(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"lm_head.weight": torch.zeros(31, 12)}))
    refused(folder, "'lm_head.weight'", "'transformer.wte.weight'", "tie_word_embeddings")


def test_a_checkpoint_without_its_head(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    refused(folder, "'lm_head.weight'", "saved without its head")


def test_biases_that_config_denies(tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "vocabulary": 31,
        "context": 8,
        "layers": 1,
        "width": 12,
        "heads": 2,
        "inner": 48,
    }
    daybreak.create("opt", **shape).save(tmp_path)
    name = "model.decoder.layers.0.fc1.bias"
    edit_weights(tmp_path, lambda state: state.update({name: torch.ones(48)}))
    edit_config(tmp_path, enable_bias=False)
    refused(tmp_path, repr(name), "not without effect")


# torch's format


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "plain pickle"])
def test_a_pickle_that_would_run_code(kind: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    file, ran = folder / "pytorch_model.bin", folder / "ran"
    contents = {FIRST: Malicious(ran)}
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, file, _use_new_zipfile_serialization=kind == "zip")
    refused(folder, str(file), "safetensors")
    assert not ran.exists()


def torch_file(folder: Path, contents: object) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(contents, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_truncated_zip(folder: Path) -> None:
    file = torch_file(folder, load_file(folder / "model.safetensors"))
    file.write_bytes(file.read_bytes()[:-200])
    refused(folder, str(file), "fetch it again")


def test_an_empty_torch_file(folder: Path) -> None:
    file = torch_file(folder, {})
    file.write_bytes(b"")
    refused(folder, str(file), "fetch it again")


def test_a_zip_of_something_else(folder: Path) -> None:
    file = torch_file(folder, {})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused(folder, str(file), "fetch it again")


def rewritten(file: Path, compression: int, byteorder: bytes) -> None:
    """The same archive, its entries compressed or not, and another byte order named in it."""
    with zipfile.ZipFile(file) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, contents in entries.items():
            new.writestr(name, byteorder if name.endswith("/byteorder") else contents)


def test_a_zip_whose_entries_are_compressed(folder: Path) -> None:
    file = torch_file(folder, load_file(folder / "model.safetensors"))
    rewritten(file, zipfile.ZIP_DEFLATED, b"little")
    refused(folder, str(file), "compressed", "safetensors")


@pytest.mark.parametrize("byteorder", [b"big", b"middle", b""])
def test_a_zip_of_another_byte_order(byteorder: bytes, folder: Path) -> None:
    file = torch_file(folder, load_file(folder / "model.safetensors"))
    rewritten(file, zipfile.ZIP_STORED, byteorder)
    refused(folder, str(file), repr(byteorder.decode()), "little", "safetensors")


def test_more_than_tensors(folder: Path) -> None:
    file = torch_file(folder, {**load_file(folder / "model.safetensors"), "epoch": 3})
    refused(folder, str(file), "'epoch'", "int")


def test_a_list_of_tensors(folder: Path) -> None:
    file = torch_file(folder, [torch.ones(3)])
    refused(folder, str(file), "list", "dictionary")


# Names


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no folder", "nowhere", "daybreak families")


def test_a_revision_of_a_folder(folder: Path) -> None:
    refused(folder, "revision 'main'", "folder", revision="main")


def test_a_model_that_was_never_published() -> None:
    refused("gpt3-175b", "gpt3-175b", "never published", "daybreak.create")
