"""Shards of training: merged exactly, from one, two, four or eight, and refused where they do not fit."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pickle
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import daybreak
from daybreak import families
from daybreak.checkpoint import tensors
from daybreak.checkpoint.rows import Joined, Section, Stacked
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.rules import Cut
from tests.unit.shard_files import (
    Names,
    dequantised,
    gated,
    names_of,
    of_training,
    redrawn,
    write_shards,
)

TOKENS = torch.tensor([[1, 2, 3, 61, 63, 5, 6]])
ROTARY = "transformer.layers.0.attention.rotary_emb.inv_freq"
DENSE_BIAS = "transformer.layers.1.attention.dense.bias"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return gated()


@pytest.fixture(scope="module")
def names(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Names:
    # Heads of 4 components: the rotary table says so, as that of the published shards says 128.
    return {**names_of(model, tmp_path_factory.mktemp("whole")), ROTARY: torch.ones(2)}


def same(first: LanguageModel, second: LanguageModel) -> bool:
    pairs = zip(first.decoder.named_parameters(), second.decoder.named_parameters(), strict=True)
    weights = all(a == b and torch.equal(left, right) for (a, left), (b, right) in pairs)
    return weights and torch.equal(first.logits(TOKENS), second.logits(TOKENS))


def refused(folder: Path, *parts: str) -> None:
    """Loading raises one line that holds all `parts`."""
    with pytest.raises(DaybreakError) as caught:
        daybreak.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def shard(folder: Path, rank: int) -> Path:
    return folder / "49300" / f"mp_rank_{rank:02}_model_states.pt"


def edit(folder: Path, rank: int, **changes: torch.Tensor | None) -> None:
    """Put other tensors into one shard, or take them out."""
    held = torch.load(shard(folder, rank), weights_only=True)
    for name, tensor in changes.items():
        if tensor is None:
            del held["module"][name]
        else:
            held["module"][name] = tensor
    torch.save(held, shard(folder, rank))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_shards_are_the_unsharded_model(
    ranks: int, model: LanguageModel, names: Names, tmp_path: Path
) -> None:
    loaded = daybreak.load(write_shards(tmp_path, names, ranks))
    assert loaded.family.name == "glm_130b"
    assert loaded.architecture.heads == 8 and loaded.architecture.gated
    assert same(loaded, model)


def test_a_copy_that_is_saved_is_the_same_model(model: LanguageModel, names: Names, tmp_path: Path) -> None:
    loaded = daybreak.load(write_shards(tmp_path / "shards", names, 4), dtype="auto")
    assert loaded.dtype == torch.float16
    loaded.save(tmp_path / "saved")
    again = daybreak.load(tmp_path / "saved")
    assert again.config["num_attention_heads"] == 8
    assert same(again, model)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_quantised_shards(bits: int, ranks: int, model: LanguageModel, names: Names, tmp_path: Path) -> None:
    """Row-parallel maps were quantised slice by slice, each with scales of its own."""
    loaded = daybreak.load(write_shards(tmp_path, names, ranks, bits=bits))
    for layer in range(2):
        block = loaded.decoder.blocks[layer]
        whole = names[f"transformer.layers.{layer}.mlp.dense_4h_to_h.weight"]
        slices = [dequantised(part, bits) for part in whole.chunk(ranks, dim=1)]
        assert torch.equal(block.mlp.down.weight, torch.cat(slices, dim=1))
        both = dequantised(names[f"transformer.layers.{layer}.mlp.dense_h_to_4h.weight"], bits)
        assert torch.equal(torch.cat([block.mlp.up.weight, block.mlp.gate.weight]), both)
    assert torch.equal(loaded.decoder.tokens.weight, model.decoder.tokens.weight)


def test_objects_of_training_are_passed_over(model: LanguageModel, names: Names, tmp_path: Path) -> None:
    assert same(daybreak.load(write_shards(tmp_path, names, 2, **of_training())), model)


class Keys(dict[str, Any]):
    """A dictionary with attributes."""


class Items(list[Any]):
    pass


@pytest.mark.parametrize("late", [False, True])
def test_containers_of_other_classes_are_passed_over(
    late: bool, model: LanguageModel, names: Names, tmp_path: Path
) -> None:
    keys = Keys(a=1, b=Items([1, Items()]))
    keys.owner = argparse.Namespace(many=collections.deque([1, {2: keys}], maxlen=3))
    held = {
        "one": collections.defaultdict(dict, {1: {}}),
        "many": collections.defaultdict(list, {1: [2], 3: collections.deque([Items([1])])}),
        "keys": [keys, {"again": keys, "path": {Path("a"): Keys(b=1)}}],
        "items": [Items([1, 2]), Items([Keys(), 3]), collections.Counter("aab")],
    }
    folder = write_shards(tmp_path, names, 2, **({} if late else held))
    for rank in range(2 if late else 0):  # behind the tensors as well as before them
        whole = torch.load(shard(folder, rank), weights_only=True)
        torch.save({**held, **whole}, shard(folder, rank))
    assert same(daybreak.load(folder), model)


def test_what_is_refused_is_named_without_advice_to_open_it_unsafely(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 1, args=Runs(tmp_path / "mark"))
    with pytest.raises(DaybreakError) as caught:
        daybreak.load(folder)
    message = str(caught.value)
    assert "mkdir" in message and "mp_rank_00" in message
    assert not any(word in message for word in ("PyTorch", "weights_only", "add_safe_globals", "\n"))


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_damaged_instructions_never_crash(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    file = folder / "mp_rank_00_model_states.pt"
    torch.save({"module": {"a": torch.ones(2)}, "x": Keys(b=Items([Path("c"), 1, "d"]))}, file)
    with zipfile.ZipFile(file) as archive:
        held = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    pickled = next(contents for name, contents in held.items() if name.endswith("data.pkl"))
    pickled[int(place * len(pickled))] = value
    with zipfile.ZipFile(file, "w") as archive:
        for name, contents in held.items():
            archive.writestr(name, contents)
    with contextlib.suppress(DaybreakError):
        tensors.contents(file, "module")


class Runs:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


class Opens(Runs):
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("kind", [Runs, Opens])
def test_nothing_is_run(kind: type[Runs], names: Names, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = write_shards(tmp_path / "shards", names, 1, args=kind(mark))
    with pytest.raises(DaybreakError) if kind is Runs else nullcontext():
        daybreak.load(folder)
    assert not mark.exists()


def test_an_object_among_the_tensors(names: Names, tmp_path: Path) -> None:
    def change(rank: int, mine: Names) -> Names:
        return {**mine, "odd": pickle.PickleError}  # type: ignore[dict-item]

    refused(write_shards(tmp_path, names, 1, change=change), "mp_rank_00", "odd", "no tensor")


def test_a_file_without_its_tensors(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 2)
    torch.save({"optimizer": {}}, shard(folder, 1))
    refused(folder, "mp_rank_01", "'module'")


def test_a_truncated_shard(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 4)
    whole = shard(folder, 2).read_bytes()
    shard(folder, 2).write_bytes(whole[: len(whole) // 2])
    refused(folder, "mp_rank_02", "not downloaded whole")


def test_a_gap_in_the_ranks(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 8)
    shard(folder, 3).unlink()
    refused(folder, "mp_rank_03_model_states.pt", "lacks")
    shard(folder, 0).rename(shard(folder, 3))
    refused(folder, "mp_rank_00_model_states.pt", "lacks")


def test_the_last_shard_is_missing(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 8)
    shard(folder, 7).unlink()
    refused(folder, "7 shards make 84 rows", "query_key_value", "96", "a shard is missing")


def test_no_shard_at_all(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 1)
    shard(folder, 0).unlink()
    refused(folder, "no mp_rank_00_model_states.pt")
    (folder / "latest").write_text("50000\n")
    refused(folder, "latest", "'50000'")
    (folder / "latest").write_text("../elsewhere")
    refused(folder, "latest", "'../elsewhere'")
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"")
    (folder / "49300" / "latest").touch()
    for tag in ("..", ".", "", "/", "x" * 300):
        (folder / "49300" / "latest").write_text(tag)
        refused(folder / "49300", "latest", f"{tag!r}")


def test_shards_of_two_models(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 2)
    edit(folder, 1, **{DENSE_BIAS: names[DENSE_BIAS] + 1})
    refused(folder, DENSE_BIAS, "mp_rank_00", "mp_rank_01", "differs")
    edit(folder, 1, **{DENSE_BIAS: torch.zeros(7)})
    refused(folder, DENSE_BIAS, "[32]", "[7]")
    edit(folder, 1, **{DENSE_BIAS: None})
    refused(folder, DENSE_BIAS, "mp_rank_01", "has not")


def test_a_single_number_in_every_shard(names: Names, model: LanguageModel, tmp_path: Path) -> None:
    bare = {**names, ROTARY: torch.tensor(3.0)}
    folder = write_shards(tmp_path, bare, 2)
    (folder / "config.json").write_text(
        json.dumps({**model.family.config(model.architecture), "model_type": model.family.model_type})
    )
    assert same(daybreak.load(folder), model)
    edit(folder, 1, **{ROTARY: torch.tensor(4.0)})
    refused(folder, ROTARY, "mp_rank_00", "mp_rank_01", "differs")


@pytest.mark.parametrize("config", [False, True])
def test_a_tensor_without_the_side_that_is_cut(
    config: bool, names: Names, model: LanguageModel, tmp_path: Path
) -> None:
    folder = write_shards(tmp_path, names, 2)
    if config:
        told = {**model.family.config(model.architecture), "model_type": model.family.model_type}
        (folder / "config.json").write_text(json.dumps(told))
    dense, table = "transformer.layers.0.attention.dense.weight", "transformer.word_embeddings.weight"
    for name, odd, words in (
        (dense, torch.ones(3).half(), ("[3]", "columns")),
        (dense, torch.ones(3, 3, 3).half(), ("[3, 3, 3]", "columns")),
        (dense, names[dense][:, :16].clone(), ()),
        (table, torch.tensor(1.0), ("[]", "rows")),
        (table, torch.ones(32), (table,)),
        (table, names[table][:32].clone(), ()),
        ("transformer.layers.0.mlp.dense_h_to_4h.weight", torch.ones(48), ("dense_h_to_4h.weight",)),
    ):
        for rank in range(2):
            edit(folder, rank, **{name: odd})
        if words:
            refused(folder, name, *words)


def test_a_scale_is_missing_or_too_short(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 2, bits=8)
    name = "transformer.layers.0.attention.dense.weight"
    for rank in range(2):
        edit(folder, rank, **{f"{name}_scale": torch.ones(31).half()})
    refused(folder, f"{name}_scale", "[31]", "32 rows")
    for rank in range(2):
        edit(folder, rank, **{f"{name}_scale": None})
    refused(folder, name, f"{name}_scale", "missing")


def test_numbers_of_another_width(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 2, bits=4)
    name = "transformer.layers.0.attention.query_key_value.weight"
    for rank in range(2):
        edit(folder, rank, **{name: torch.zeros(48, 11, dtype=torch.int8)})
    refused(folder, name, "[48, 11]", "[48, 32]", "neither eight nor four bits")


def test_heads_are_never_guessed(names: Names, tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in names.items() if name != ROTARY}
    folder = write_shards(tmp_path, bare, 2)
    refused(folder, "width of 32", "heads of 128", "num_attention_heads")
    (folder / "model_config.json").write_text(json.dumps({"num_attention_heads": 4, "num_layers": 2}))
    assert daybreak.load(folder).architecture.heads == 4
    (folder / "model_config.json").write_text(json.dumps({"num_attention_heads": 8, "num_layers": 3}))
    refused(folder, "num_layers 3", "make it 2")


@pytest.mark.parametrize("table", [torch.tensor(1.0), torch.ones(0)])
def test_a_rotary_table_that_tells_nothing(table: torch.Tensor, names: Names, tmp_path: Path) -> None:
    refused(write_shards(tmp_path, {**names, ROTARY: table}, 2), "width of 32", "num_attention_heads")


def test_settings_against_the_rotary_table(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, names, 2)
    (folder / "model_config.json").write_text(json.dumps({"num_attention_heads": 4}))
    refused(folder, "num_attention_heads 4", "head's width of 4", "do not fit")


def test_the_published_shape_needs_no_settings() -> None:
    """Names and shapes of the published shards, whose heads are 128 wide."""
    release = families.by_name("glm_130b").shard_release
    assert release is not None
    layer = "transformer.layers.{}."
    shapes = {
        "transformer.word_embeddings.weight": (150528, 12288),
        "transformer.final_layernorm.weight": (12288,),
    }
    for number in range(70):
        shapes[layer.format(number) + "mlp.dense_h_to_4h.weight"] = (65536, 12288)
        shapes[layer.format(number) + "mlp.dense_4h_to_h.weight"] = (12288, 32768)
    assert release.recognises(shapes)
    family = families.by_name("glm_130b")
    assert family.architecture(**release.fields(shapes, {})) == family.architecture("glm-130b")


def test_a_config_beside_the_shards_is_believed(names: Names, model: LanguageModel, tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in names.items() if name != ROTARY}
    folder = write_shards(tmp_path, bare, 4)
    config = {**model.family.config(model.architecture), "model_type": "glm-130b"}
    (folder / "config.json").write_text(json.dumps(config))
    assert same(daybreak.load(folder), model)


def test_names_of_no_family(tmp_path: Path) -> None:
    refused(write_shards(tmp_path, {"encoder.weight": torch.ones(4, 4)}, 2), "no family", "config.json")


@pytest.mark.parametrize("spelling", ["original", "later"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_first_models(spelling: str, ranks: int, tmp_path: Path) -> None:
    """Queries, keys and values are cut each by itself, and gelu is the one with tanh."""
    shape = {"vocabulary": 64, "context": 16, "layers": 2, "width": 128, "heads": 2, "inner": 256}
    model = redrawn(daybreak.create("glm", **shape, activation="gelu_tanh"), 3)
    names = {
        name.removeprefix("glm."): tensor for name, tensor in names_of(model, tmp_path / "whole").items()
    }
    if spelling == "later":
        block = "block_position_embeddings.weight"
        names["mixins.block_position_embedding." + block] = names.pop("transformer." + block)
        names["transformer.word_embeddings.weight"] = names.pop("word_embeddings.weight")

    def thirds(rank: int, mine: Names) -> Names:
        for name, tensor in names.items():
            if "query_key_value" in name:
                parts = [third.chunk(ranks)[rank] for third in tensor.chunk(3)]
                mine[name] = torch.cat(parts)
        return mine

    folder = write_shards(tmp_path / "shards", names, ranks, halves=False, change=thirds)
    loaded = daybreak.load(folder)
    assert loaded.architecture.activation == "gelu_tanh" and loaded.architecture.context == 16
    assert same(loaded, model)


@pytest.mark.parametrize("ranks", [1, 2])
def test_shards_of_the_smaller_successor(ranks: int, tmp_path: Path) -> None:
    shape = {"vocabulary": 64, "context": 16, "layers": 2, "width": 32, "heads": 4, "inner": 64}
    model = redrawn(daybreak.create("chatglm", **shape), 4)
    names = names_of(model, tmp_path / "whole")
    names["mixins.chatglm-final.lm_head.weight"] = names.pop("lm_head.weight")
    names["mixins.chatglm-attn.rotary_emb.inv_freq"] = torch.ones(2)
    names["transformer.position_embeddings.weight"] = torch.ones(16, 32)
    loaded = daybreak.load(write_shards(tmp_path / "shards", names, ranks, halves=False))
    assert loaded.family.name == "chatglm" and same(loaded, model)


class Whole:
    """Rows of a tensor in memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), tensor.dtype

    def read(self, first: int, last: int) -> torch.Tensor:
        return self.tensor[first:last]

    def release(self) -> None:
        pass


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_rows_of_anything_put_together(data: st.DataObject) -> None:
    """Against torch's own cat and slicing, whatever is nested in what."""
    number = iter(range(10_000))

    def leaf(rows: int, columns: int) -> tuple[Any, torch.Tensor]:
        values = [[next(number) for _ in range(columns)] for _ in range(rows)]
        tensor = torch.tensor(values, dtype=torch.float32).reshape(rows, columns)
        return Whole(tensor), tensor

    def tree(rows: int, columns: int, depth: int) -> tuple[Any, torch.Tensor]:
        kind = data.draw(st.sampled_from(["leaf", "stacked", "joined", "section"] if depth else ["leaf"]))
        if kind == "stacked" and rows > 1:
            at = data.draw(st.integers(1, rows - 1))
            first, second = tree(at, columns, depth - 1), tree(rows - at, columns, depth - 1)
            return Stacked([first[0], second[0]]), torch.cat([first[1], second[1]])
        if kind == "joined" and columns > 1:
            at = data.draw(st.integers(1, columns - 1))
            first, second = tree(rows, at, depth - 1), tree(rows, columns - at, depth - 1)
            return Joined([first[0], second[0]]), torch.cat([first[1], second[1]], dim=1)
        if kind == "section":
            before, behind = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
            made, tensor = tree(before + rows + behind, columns, depth - 1)
            return Section(made, before, before + rows), tensor[before : before + rows]
        return leaf(rows, columns)

    rows = data.draw(st.integers(1, 9))
    made, tensor = tree(rows, data.draw(st.integers(1, 5)), 3)
    assert made.shape == tuple(tensor.shape)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    assert torch.equal(made.read(first, last), tensor[first:last])


@given(st.integers(0, 1), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
def test_shapes_of_pieces_and_wholes(dim: int, pieces: int, rows: int, columns: int) -> None:
    cut = Cut(dim)
    whole = cut.whole((rows, columns), pieces)
    assert whole[dim] == (rows, columns)[dim] * pieces and whole[1 - dim] == (rows, columns)[1 - dim]
    assert cut.piece(whole, pieces) == (rows, columns)
