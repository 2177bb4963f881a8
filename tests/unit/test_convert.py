"""`daybreak convert`: the same model from every kind of checkpoint, in little memory, or no folder at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import daybreak
from daybreak import families
from daybreak.architecture import Rotary
from daybreak.checkpoint.convert import convert
from daybreak.cli.main import run
from daybreak.errors import DaybreakError
from tests.unit.shard_files import Names, gated, names_of, packed, redrawn, write_shards

ROTARY = "transformer.layers.0.attention.rotary_emb.inv_freq"
TOKENS = torch.tensor([[1, 2, 3, 61, 63, 5, 6]])


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    return {**names_of(gated(), tmp_path_factory.mktemp("whole")), ROTARY: torch.ones(2)}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_eight_four_two_shards_and_one(bits: int | None, names: Names, tmp_path: Path) -> None:
    """Packed, only the maps that are cut along their inputs depend on how many shards there were."""
    written = {}
    for ranks in (1, 2, 4, 8) if bits is None else (1, 8):
        folder = write_shards(tmp_path / f"shards-{ranks}", names, ranks, bits=bits)
        done = convert(folder, tmp_path / f"out-{ranks}")
        assert (done.dtype, done.files) == ("float16", 1)
        written[ranks] = contents(done.folder)
        before, behind = daybreak.load(folder), daybreak.load(done.folder, dtype="float32")
        if bits is None:
            assert torch.equal(before.logits(TOKENS), behind.logits(TOKENS))
        else:  # the products of numbers and scales were rounded to float16 on the way
            half = daybreak.load(folder, dtype="float16").decoder.parameters()
            assert all(
                torch.equal(a.float(), b) for a, b in zip(half, behind.decoder.parameters(), strict=True)
            )
    if bits is None:
        assert written[1] == written[2] == written[4] == written[8]


@pytest.mark.parametrize(
    "name", ["gpt", "gpt2", "gpt_j", "gpt_neox", "opt", "bloom", "glm", "chatglm", "llama"]
)
def test_an_ordinary_folder_stays_as_it_is(name: str, tmp_path: Path) -> None:
    """Byte for byte what `model.save` writes, in every layout of fused and turned matrices."""
    shape = {"vocabulary": 64, "context": 16, "layers": 2, "width": 32, "heads": 2, "inner": 128}
    positions = {"positions": Rotary(8, "neighbours")} if name == "gpt_j" else {}
    redrawn(daybreak.create(name, **shape, **positions), 7).save(tmp_path / "saved")
    daybreak.load(tmp_path / "saved").save(tmp_path / "again")
    convert(tmp_path / "saved", tmp_path / "converted")
    assert contents(tmp_path / "converted") == contents(tmp_path / "again")


def test_other_layouts_are_taken_apart(tmp_path: Path) -> None:
    """metaseq's stacked keys, values and queries become three tensors."""
    shape = {"vocabulary": 40, "context": 16, "layers": 2, "width": 16, "heads": 2}
    model = redrawn(daybreak.create("opt", **shape), 8)
    names = names_of(model, tmp_path / "old")
    for layer in range(2):
        attention = f"model.decoder.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [names.pop(f"{attention}.{part}_proj.{kind}") for part in "kvq"]
            names[f"{attention}.qkv_proj.{kind}"] = torch.cat(parts)
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(names, tmp_path / "old" / "pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "new", dtype="float32")
    converted = daybreak.load(tmp_path / "new")
    assert "k_proj" in (tmp_path / "new" / "model.safetensors").read_bytes()[:3000].decode(errors="ignore")
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(converted.logits(tokens), model.logits(tokens))


def test_dtype_and_files(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", names, 2)
    done = convert(folder, tmp_path / "out", dtype="bfloat16", shard_size="10KB")
    assert done.dtype == "bfloat16" and done.files > 2
    assert done.bytes == sum(2 * one.numel() for one in daybreak.load(folder).decoder.parameters())
    loaded = daybreak.load(done.folder, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.decoder.tokens.weight, names["transformer.word_embeddings.weight"].bfloat16())
    with pytest.raises(DaybreakError, match="dtype is 'int8'"):
        convert(folder, tmp_path / "other", dtype="int8")


def test_a_size_says_what_shards_do_not(
    names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {name: tensor for name, tensor in names.items() if name != ROTARY}
    folder = write_shards(tmp_path / "shards", bare, 2)
    with pytest.raises(DaybreakError, match="heads of 128"):
        convert(folder, tmp_path / "out")
    with pytest.raises(DaybreakError, match="no published model is called 'glm-13b'"):
        convert(folder, tmp_path / "out", size="glm-13b")
    with pytest.raises(DaybreakError, match=r"2 shards make \d+ rows .* needs \d+"):
        convert(folder, tmp_path / "out", size="glm-130b")
    published = families.by_name("glm_130b").sizes["glm-130b"]
    shape = {"vocabulary": 64, "layers": 2, "width": 32, "heads": 8, "inner": 48}
    monkeypatch.setitem(published.__dict__, "changes", shape)
    convert(folder, tmp_path / "out", size="glm-130b")
    assert daybreak.load(tmp_path / "out").architecture.heads == 8
    with pytest.raises(DaybreakError, match="leave the size out"):
        convert(tmp_path / "out", tmp_path / "again", size="glm-130b")


def test_packed_weights_of_the_hub(tmp_path: Path) -> None:
    shape = {"vocabulary": 64, "context": 16, "layers": 2, "width": 32, "heads": 4, "inner": 64}
    names = packed(names_of(redrawn(daybreak.create("chatglm", **shape), 9), tmp_path / "packed"), 4)
    (tmp_path / "packed" / "model.safetensors").unlink()
    torch.save(names, tmp_path / "packed" / "pytorch_model.bin")
    convert(tmp_path / "packed", tmp_path / "out", dtype="float32")
    before, behind = daybreak.load(tmp_path / "packed"), daybreak.load(tmp_path / "out")
    assert torch.equal(before.logits(TOKENS), behind.logits(TOKENS))
    assert "quantization_bit" not in behind.config


def test_a_destination_in_use(names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", names, 2)
    before = contents(folder / "49300")
    with pytest.raises(DaybreakError, match="not an empty folder"):
        convert(folder, folder)
    assert contents(folder / "49300") == before


def test_a_disk_without_room(names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "shards", names, 2)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(DaybreakError, match=r"out needs 0\.0 GB .* free there"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("existed", [False, True])
def test_a_conversion_that_fails_half_way(existed: bool, names: Names, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", names, 2)
    if existed:
        (tmp_path / "out").mkdir()

    def stop(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out", shard_size="10KB", progress=stop)
    assert (tmp_path / "out").exists() == existed
    assert not existed or not any((tmp_path / "out").iterdir())


def test_the_command(names: Names, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards(tmp_path / "shards", names, 2)
    assert run(["convert", str(folder), str(tmp_path / "one")]) == 0
    out = capsys.readouterr()
    assert out.out == f"{tmp_path / 'one'}: GLM-130B, 20,288 parameters in float16, 39.6 KiB in one file\n"
    assert out.err == ""
    assert run(["convert", str(folder), str(tmp_path / "two"), "--dtype", "float32", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["parameters"], told["bytes"], told["family"]) == (20288, 81152, "glm_130b")
    assert run(["convert", str(folder), str(tmp_path / "two")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


MEASURE = """
import sys
from pathlib import Path
from benchmarks.convert import measure
for source in map(Path, sys.argv[1:]):
    print(measure(source, source.with_suffix(".out"))["peak"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's counters")
def test_peak_memory(tmp_path: Path) -> None:
    """Less than one layer, from float16 and from eight bits."""
    from benchmarks.convert import SMALL, layer_bytes, write_shards_of

    sources = [tmp_path / "plain", tmp_path / "packed"]
    for source, bits in zip(sources, (None, 8), strict=True):
        write_shards_of(SMALL, source, ranks=4, bits=bits)
    command = [sys.executable, "-c", MEASURE, *map(str, sources)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = list(map(int, result.stdout.split()))
    assert len(peaks) == 2 and 0 < max(peaks) < layer_bytes(SMALL, "float16"), peaks
