"""Loading and saving against the files that transformers really writes and opens, for every family."""

from __future__ import annotations

import json
import os
import string
import zipfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import daybreak
from daybreak import families
from daybreak.architecture import Rotary
from daybreak.checkpoint.save import parse_size
from daybreak.checkpoint.tensors import contents
from daybreak.compare import reference
from daybreak.errors import DaybreakError
from daybreak.families.trials import REFERENCES, TRIALS, trials
from daybreak.language_model import LanguageModel
from daybreak.text.train_tokenizer import train_tokenizer

CASES = [(name, label) for name, labels in TRIALS.items() if name not in REFERENCES for label in labels]
SMALL: dict[str, Any] = {"vocabulary": 61, "context": 24, "layers": 2, "width": 24, "heads": 3, "inner": 96}
SHAPES: dict[str, dict[str, Any]] = {
    name: {
        **SMALL,
        **({"positions": Rotary(4, "halves")} if name == "gpt_neox" else {}),
        **({"positions": Rotary(4, "neighbours")} if name == "gpt_j" else {}),
    }
    for name in families.NAMES
}
TOKENS = torch.arange(1, 15).view(2, 7)


def theirs(name: str, label: str, folder: Path, **options: Any) -> torch.nn.Module:
    """A folder as transformers saves it, and the model it was saved from."""
    model = reference.build(families.by_name(name), trials(name)[label], seed=5)
    model.save_pretrained(folder, **options)  # type: ignore[operator]
    return model


def small(name: str, seed: int = 0, **changes: Any) -> LanguageModel:
    return daybreak.create(name, seed=seed, **{**SHAPES[name], **changes})


def redrawn(model: LanguageModel) -> LanguageModel:
    reference.redraw(model.decoder, seed=3)
    return model


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


@pytest.mark.parametrize(("name", "label"), CASES)
def test_what_transformers_saved_comes_back_byte_for_byte(name: str, label: str, tmp_path: Path) -> None:
    model = theirs(name, label, tmp_path / "theirs")
    ours = daybreak.load(tmp_path / "theirs")
    assert ours.architecture == trials(name)[label]
    expected = model(TOKENS).logits
    assert (ours.logits(TOKENS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    ours.save(tmp_path / "ours")
    before, after = (tmp_path / side / "model.safetensors" for side in ("theirs", "ours"))
    assert before.read_bytes() == after.read_bytes()


@pytest.mark.parametrize(("name", "label"), CASES)
def test_transformers_opens_what_was_saved(name: str, label: str, tmp_path: Path) -> None:
    architecture = trials(name)[label]
    fields = {field: getattr(architecture, field) for field in architecture.__dataclass_fields__}
    model = redrawn(daybreak.create(name, **fields))
    model.save(tmp_path)
    opened = reference.load(tmp_path)
    expected = model.logits(TOKENS)
    assert (opened(TOKENS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [families.by_name(name).hf_class]
    assert type(opened).__name__ == families.by_name(name).hf_class
    assert written["dtype"] == written["torch_dtype"] == "float32"


@pytest.mark.parametrize("name", families.NAMES)
def test_a_created_model_comes_back_with_all_its_decisions(name: str, tmp_path: Path) -> None:
    model = redrawn(small(name))
    model.save(tmp_path)
    back = daybreak.load(tmp_path)
    assert back.architecture == model.architecture
    assert back.family.name == name
    assert torch.equal(back.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("name", families.NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_go_both_ways(name: str, dtype: str, tmp_path: Path) -> None:
    model = redrawn(small(name))
    model.decoder.to(getattr(torch, dtype))
    model.save(tmp_path / "narrow")
    narrow = daybreak.load(tmp_path / "narrow", dtype="auto")
    assert narrow.dtype == getattr(torch, dtype)
    narrow.save(tmp_path / "again")
    assert_same(tensors(tmp_path / "narrow"), tensors(tmp_path / "again"))
    wide = daybreak.load(tmp_path / "narrow")
    for parameter, original in zip(wide.decoder.parameters(), model.decoder.parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, original.float())


def test_auto_is_the_dtype_of_the_weights_whatever_config_leaves_out(tmp_path: Path) -> None:
    model = redrawn(small("gpt2"))
    model.decoder.to(torch.bfloat16)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"], config["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = load_file(tmp_path / "model.safetensors")
    state["h.0.attn.bias"] = torch.ones(1, 1, 400, 400, dtype=torch.bool)  # larger than any weight
    save_file(state, tmp_path / "model.safetensors")
    assert daybreak.load(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt"])
def test_shards_of_either_side(name: str, tmp_path: Path) -> None:
    label = next(iter(TRIALS[name]))
    model = theirs(name, label, tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    ours = daybreak.load(tmp_path / "theirs")
    ours.save(tmp_path / "ours", shard_size="30KB")
    shards = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert not (tmp_path / "ours/model.safetensors").exists()
    assert_same(tensors(tmp_path / "theirs"), tensors(tmp_path / "ours"))
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "ours"))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(tmp_path / "ours").values())
    assert torch.equal(reference.load(tmp_path / "ours")(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("name", ["gpt2", "gpt_j", "bloom"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_torch_s_own_files_are_read(name: str, zipped: bool, tmp_path: Path) -> None:
    model = redrawn(small(name))
    model.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    # One storage for two tensors, a transposed one and one that starts inside its storage.
    first = next(key for key, tensor in state.items() if tensor.dim() == 2)
    state[first] = state[first].t().contiguous().t()
    wide = torch.cat([torch.zeros(3), state[next(k for k, t in state.items() if t.dim() == 1)]])
    state[next(k for k, t in state.items() if t.dim() == 1)] = wide[3:]
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("left_out", ["", "/byteorder", "/.format_version"])
def test_torch_s_files_may_have_been_packed_again(left_out: str, tmp_path: Path) -> None:
    """Such archives have no padding, so torch's calculation of places is wrong for them."""
    model = redrawn(small("gpt2"))
    model.save(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(load_file(tmp_path / "model.safetensors"), file)
    (tmp_path / "model.safetensors").unlink()
    assert all(stored.loaded is None for stored in contents(file))
    with zipfile.ZipFile(file) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in entries.items():
            if not (left_out and name.endswith(left_out)):
                new.writestr(name, data)
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


def test_sharded_torch_files_are_read(tmp_path: Path) -> None:
    model = redrawn(small("gpt2"))
    model.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, tmp_path / shard)
        places.update(dict.fromkeys(part, shard))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("name", families.NAMES)
def test_names_without_prefix_and_buffers_of_old_files(name: str, tmp_path: Path) -> None:
    model = redrawn(small(name))
    model.save(tmp_path)
    file = tmp_path / "model.safetensors"
    buffers = {
        "gpt": {"h.0.attn.bias": torch.ones(1, 1, 24, 24)},
        "gpt2": {
            "h.0.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.uint8),
            "h.1.attn.masked_bias": torch.tensor(-1e4),
        },
        "gpt_neo": {"transformer.h.1.attn.attention.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool)},
        "gpt_j": {"h.0.attn.masked_bias": torch.tensor(-1e9), "transformer.h.1.attn.bias": torch.ones(2, 2)},
        "gpt_neox": {
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
            "layers.1.attention.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool),
        },
    }.get(name, {})
    bare = {key.removeprefix(families.by_name(name).prefix): value for key, value in load_file(file).items()}
    save_file({**bare, **buffers}, file)
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


def test_metaseq_s_spelling(tmp_path: Path) -> None:
    model = redrawn(small("opt"))
    model.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        short = name.removeprefix("model.")
        if any(part in short for part in (".k_proj.", ".v_proj.", ".q_proj.")):
            continue
        old[short.replace("decoder.final_layer_norm", "decoder.layer_norm")] = tensor
    for layer in range(2):
        for kind in ("weight", "bias"):
            at = f"model.decoder.layers.{layer}.self_attn.{{}}_proj.{kind}"
            rows = torch.cat([state[at.format(part)] for part in "kvq"])
            old[f"decoder.layers.{layer}.self_attn.qkv_proj.{kind}"] = rows
    old["decoder.version"] = torch.tensor([3.0])
    old["decoder.output_projection.weight"] = state["model.decoder.embed_tokens.weight"].clone()
    save_file(old, tmp_path / "model.safetensors")
    back = daybreak.load(tmp_path)
    assert torch.equal(back.logits(TOKENS), model.logits(TOKENS))
    back.save(tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), state)


def test_zero_biases_that_the_architecture_leaves_out_are_no_obstacle(tmp_path: Path) -> None:
    model = redrawn(small("opt", biases=frozenset(), norm_affine=False))
    model.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.decoder.layers.0.fc1.bias"] = torch.zeros(96)
    state["model.decoder.layers.1.final_layer_norm.weight"] = torch.ones(24)
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


def test_a_tied_head_may_stand_in_the_file(tmp_path: Path) -> None:
    model = redrawn(small("gpt2"))
    model.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in state
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


def test_unaligned_files_are_read(tmp_path: Path) -> None:
    model = redrawn(small("gpt2"))
    model.save(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].rstrip() + b" " * (3 - len(whole[8 : 8 + length].rstrip()) % 4)
    file.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    assert len(header) % 4 == 3
    assert torch.equal(daybreak.load(tmp_path).logits(TOKENS), model.logits(TOKENS))


def test_saving_into_the_folder_it_came_from(tmp_path: Path) -> None:
    redrawn(small("gpt2")).save(tmp_path)
    before = tensors(tmp_path)
    model = daybreak.load(tmp_path)
    logits = model.logits(TOKENS)
    model.save(tmp_path, shard_size="20KB")
    model.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(tensors(tmp_path), before)
    assert torch.equal(model.logits(TOKENS), logits)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gpt_neo"])
def test_training_a_loaded_model_leaves_the_file_alone(name: str, tmp_path: Path) -> None:
    redrawn(small(name)).save(tmp_path)
    contents = (tmp_path / "model.safetensors").read_bytes()
    mapped, fresh = daybreak.load(tmp_path), daybreak.load(tmp_path)
    for parameter in fresh.decoder.parameters():
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
    for model in (mapped, fresh):
        optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model.decoder.logits(TOKENS).logsumexp(-1).mean().backward()
            optimizer.step()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == contents
    for one, other in zip(mapped.decoder.parameters(), fresh.decoder.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(mapped.logits(TOKENS), daybreak.load(tmp_path).logits(TOKENS), atol=1e-3)


def test_parameters_are_views_of_the_file_where_nothing_changes(tmp_path: Path) -> None:
    small("gpt2").save(tmp_path)
    same = daybreak.load(tmp_path).decoder.blocks[0].attention
    one_storage = {part.weight.untyped_storage().data_ptr() for part in (same.query, same.key, same.value)}
    assert len(one_storage) == 1
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(tmp_path / "model.safetensors") in mapped.read_text()


def test_keys_of_the_original_config_survive(tmp_path: Path) -> None:
    theirs("gpt_neox", "parallel", tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config.update(_name_or_path="somewhere", my_note="kept", eos_token_id=7)
    file.write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 7}')
    model = daybreak.load(tmp_path)
    assert model.generation == {"temperature": 0.5, "eos_token_id": 7}
    model.save(tmp_path / "again")
    written = json.loads((tmp_path / "again/config.json").read_text())
    assert (written["my_note"], written["eos_token_id"]) == ("kept", 7)
    assert json.loads((tmp_path / "again/generation_config.json").read_text()) == model.generation
    assert daybreak.load(tmp_path / "again").architecture == model.architecture


def test_special_tokens_of_a_fresh_model_lie_inside_its_vocabulary(tmp_path: Path) -> None:
    small("gpt2").save(tmp_path / "small")
    assert "eos_token_id" not in json.loads((tmp_path / "small/config.json").read_text())
    small("opt").save(tmp_path / "opt")
    config = json.loads((tmp_path / "opt/config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"]) == (2, 1)


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redrawn(small("gpt2")).save(tmp_path / "old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daybreak.checkpoint.save._bytes", full)
    for folder in ("old", "new"):
        with pytest.raises(DaybreakError, match=r"cannot be written: No space left on device"):
            small("gpt2", seed=1).save(tmp_path / folder)
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def contents_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def with_tokenizer(name: str, seed: int) -> LanguageModel:
    model = redrawn(small(name, seed))
    model.tokenizer = train_tokenizer([string.printable * 3], vocabulary=258)
    model.generation = {"temperature": 0.5}
    return model


@pytest.mark.parametrize("call", range(1, 12))
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["io", "^C"])
def test_a_save_that_fails_half_way_is_undone(
    call: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tokenizer("gpt2", 0).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents_of(tmp_path)
    replace, calls = os.replace, count(1)

    def failing(source: Path, target: Path) -> None:
        if next(calls) == call:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    try:
        redrawn(small("bloom")).save(tmp_path, shard_size="20KB")
    except (DaybreakError, KeyboardInterrupt):
        assert contents_of(tmp_path) == before
    else:
        assert next(calls) <= call  # so many files there are not
        assert call > 5


def test_a_save_that_ends_half_way_leaves_no_checkpoint_rather_than_a_mixed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be killed between any two renames: with a config.json the folder is whole, old or new."""
    redrawn(small("gpt2")).save(tmp_path)
    old = contents_of(tmp_path)
    new = redrawn(small("gpt2", layers=1))
    replace, seen = os.replace, []

    def watched(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append({file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()})

    monkeypatch.setattr(os, "replace", watched)
    new.save(tmp_path)
    whole = (old, contents_of(tmp_path))
    assert len(seen) == 4
    assert all(state in whole for state in seen if "config.json" in state)


def test_what_a_killed_save_left_goes_once_another_is_through(tmp_path: Path) -> None:
    model = daybreak.create("gpt2", **SHAPES["gpt2"])
    for name in (".saving-x", ".replaced-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(DaybreakError):
        model.save(tmp_path, shard_size="much")
    assert len(list(tmp_path.iterdir())) == 2  # until then it may be all that there is
    model.save(tmp_path)
    assert not [file.name for file in tmp_path.iterdir() if file.is_dir()]


def test_files_of_the_earlier_model_do_not_stay(tmp_path: Path) -> None:
    with_tokenizer("gpt2", 0).save(tmp_path)
    for name in ("added_tokens.json", "vocab.json", "pytorch_model_00001-of-00002.bin"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    redrawn(small("bloom")).save(tmp_path)
    assert set(contents_of(tmp_path)) == {"config.json", "model.safetensors", "notes.txt"}
    back = daybreak.load(tmp_path)
    assert back.tokenizer is None
    assert back.generation == {}


def test_sizes_of_shards() -> None:
    assert [parse_size(size) for size in ("5GB", "1.5 MB", "2KiB", 77)] == [5 * 10**9, 1_500_000, 2048, 77]
    for wrong in ("5 apples", "", "-1GB", "0"):
        with pytest.raises(DaybreakError, match="shard size"):
            parse_size(wrong)


def first_release(model: LanguageModel, folder: Path) -> None:
    """The weights as finetune-transformer-lm published them: a row of numbers, cut into ten files."""
    model.save(folder)
    state = load_file(folder / "model.safetensors")
    for file in folder.iterdir():
        file.unlink()
    layer = [
        f"{part}.{kind}"
        for part in ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
        for kind in ("weight", "bias")
    ]
    names = ["positions_embed.weight", "tokens_embed.weight"]
    names += [f"h.{i}.{part}" for i in range(model.architecture.layers) for part in layer]
    arrays = [state["transformer." + name].numpy() for name in names]
    shapes = [
        [1, *array.shape] if array.ndim == 2 and "embed" not in name else list(array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    row = np.concatenate([array.reshape(-1) for array in arrays])
    for number, part in enumerate(np.array_split(row, 10)):
        np.save(folder / f"params_{number}.npy", part)


def test_the_first_release_of_all(tmp_path: Path) -> None:
    model = redrawn(small("gpt", heads=12))
    first_release(model, tmp_path)
    back = daybreak.load(tmp_path)
    assert back.architecture == model.architecture
    assert torch.equal(back.logits(TOKENS), model.logits(TOKENS))
    back.save(tmp_path / "today")
    assert torch.equal(daybreak.load(tmp_path / "today").logits(TOKENS), model.logits(TOKENS))


def test_a_damaged_first_release(tmp_path: Path) -> None:
    first_release(small("gpt", heads=12), tmp_path)
    (tmp_path / "params_3.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DaybreakError, match=r"params_3\.npy is no array"):
        daybreak.load(tmp_path)
    (tmp_path / "params_3.npy").unlink()
    with pytest.raises(DaybreakError, match="fetch the missing ones"):
        daybreak.load(tmp_path)
    (tmp_path / "params_9.npy").rename(tmp_path / "params_3.npy")
    with pytest.raises(DaybreakError, match=r"describes \d+ numbers, params_\*\.npy hold \d+"):
        daybreak.load(tmp_path)
    (tmp_path / "params_shapes.json").write_text("[[3, 4], [5, 4], [1]]")
    with pytest.raises(DaybreakError, match="lists 3 shapes"):
        daybreak.load(tmp_path)


def test_a_loaded_model_generates_as_the_one_that_was_saved(tmp_path: Path) -> None:
    model = redrawn(small("gpt_neo"))
    model.save(tmp_path)
    texts = [
        [result.tokens for result in one.generate([[1, 2, 3], [4]], max_new_tokens=6, temperature=0)]
        for one in (model, daybreak.load(tmp_path))
    ]
    assert texts[0] == texts[1]
    assert [len(tokens) for tokens in texts[0]] == [6, 6]
