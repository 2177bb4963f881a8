"""The folder that `daybreak quantize` writes: the same model again, where it lies, or no folder at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import daybreak
from daybreak import families
from daybreak.checkpoint.convert import opened_source
from daybreak.checkpoint.fill import fill
from daybreak.compare.redraw import redraw
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_folder import write_quantised
from daybreak.engine.quantised_linear import Quantiser
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from tests.unit.test_checkpoint_roundtrip import SHAPES
from tests.unit.test_gguf import made as in_gguf

TOKENS = torch.arange(1, 15).view(2, 7)
SCHEMES = [Scheme(), Scheme(8, 64, True), Scheme(4, 32), Scheme(4, 128, True), Scheme(4)]


def saved(name: str, folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    model = daybreak.create(name, **{**SHAPES[name], **changes})
    redraw(model.decoder, 1)
    model.decoder.to(getattr(torch, dtype))
    model.save(folder)
    return folder


def write(source: Path, out: Path, scheme: Scheme | None = None, **options: Any) -> Path:
    write_quantised(opened_source(source, None, None, True), out, scheme or Scheme(), **options)
    return out


def as_read(source: Path, scheme: Scheme) -> Decoder:
    """What `daybreak.load(source, bits=..)` gives, in any scheme; nothing in it is to be trained."""
    opened = opened_source(source, None, None, True)
    others = partial(Quantiser, scheme=scheme)
    spelled = opened.spelled or opened.family
    place = torch.device("cpu")
    decoder = fill(spelled, opened.architecture, opened.found, torch.float32, place, source, others)
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("name", families.NAMES)
def test_a_folder_is_what_loading_with_bits_gives(name: str, tmp_path: Path) -> None:
    source = saved(name, tmp_path / "whole")
    for bits in (8, 4):
        out = write(source, tmp_path / f"few-{bits}", Scheme.usual(bits))
        loaded = daybreak.load(out)
        assert torch.equal(loaded.logits(TOKENS), daybreak.load(source, bits=bits).logits(TOKENS))
        assert loaded.family.name == name and loaded.architecture == daybreak.load(source).architecture
        assert torch.equal(daybreak.load(out, bits=bits).logits(TOKENS), loaded.logits(TOKENS))


@pytest.mark.parametrize("name", ["gpt_neox", "llama"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme(name: str, scheme: Scheme, tmp_path: Path) -> None:
    source = saved(name, tmp_path / "whole")
    out = write(source, tmp_path / "few", scheme)
    assert torch.equal(daybreak.load(out).logits(TOKENS), as_read(source, scheme).logits(TOKENS))


def test_from_llama_cpps_format(tmp_path: Path) -> None:
    file, _ = in_gguf(tmp_path, "llama")
    out = write(file, tmp_path / "few")
    assert torch.equal(daybreak.load(out).logits(TOKENS), daybreak.load(file, bits=8).logits(TOKENS))


def test_what_stands_beside_the_weights_is_kept(tmp_path: Path) -> None:
    source = saved("bloom", tmp_path / "whole")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    loaded = daybreak.load(write(source, tmp_path / "few"))
    assert loaded.generation == {"temperature": 0.5}
    assert loaded.config["eos_token_id"] == 7 and "quantization_config" not in loaded.config


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_quantised_keeps_its_dtype(dtype: str, tmp_path: Path) -> None:
    source = saved("gpt_neox", tmp_path / "whole", dtype)
    out = write(source, tmp_path / "few")
    wanted = getattr(torch, dtype)
    for name, tensor in load_file(out / "model.safetensors").items():
        kinds = {"numbers": torch.uint8, "scales": torch.float32}
        assert tensor.dtype == kinds.get(name.rpartition(".")[2], wanted), name
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    whole = daybreak.load(source, dtype="auto").decoder
    for asked, found in (("auto", wanted), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        decoder = daybreak.load(out, dtype=asked).decoder
        assert {one.dtype for one in decoder.parameters()} == {found}
        assert torch.equal(decoder.tokens.weight, whole.tokens.weight.to(found))
        assert torch.equal(decoder.blocks[1].mlp_norm.bias, whole.blocks[1].mlp_norm.bias.to(found))
        assert decoder.blocks[0].mlp.up.scales.dtype == torch.float32
        assert torch.equal(decoder.blocks[0].mlp.up.bias, whole.blocks[0].mlp.up.bias.float())


def lies_in(tensor: Tensor, file: Path) -> bool:
    """Is this memory a mapping of the file?"""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.endswith(str(file))
    return False


LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's counters")


@LINUX
@pytest.mark.parametrize("bits", [8, 4])
def test_tensors_lie_in_the_file_and_are_aligned(bits: int, tmp_path: Path) -> None:
    source = saved("gpt_neox", tmp_path / "whole", "float16")
    out = write(source, tmp_path / "few", Scheme(bits, 32, True))
    decoder = daybreak.load(out, dtype="auto").decoder
    packed = {name for name, _ in decoder.named_buffers() if not name.endswith("bias")}
    assert len(packed) == 3 * (2 * 6 + 1)
    for name, tensor in decoder.state_dict().items():
        if name in packed or tensor.dtype == torch.float16:
            assert lies_in(tensor, out / "model.safetensors"), name
        assert name not in packed or tensor.data_ptr() % 64 == 0, name


MEASURE = """
import sys
import daybreak.language_model as library
from benchmarks.convert import anonymous_peak
from daybreak.checkpoint.convert import opened_source
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_folder import write_quantised
tiny, source, bits, out = sys.argv[1:]
def write(source, out):
    write_quantised(opened_source(source, None, None, True), out, Scheme.usual(int(bits)))
write(tiny, out + "-tiny")
library.load(out + "-tiny")
print(anonymous_peak(lambda: write(source, out)), anonymous_peak(lambda: library.load(out, dtype="auto")))
"""


@LINUX
@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_peak_memory(bits: int, tmp_path: Path) -> None:
    """Beyond the imports, writing needs what becomes of the largest tensor and a little more, and loading
    almost nothing."""
    rows, width = 20000, 1024
    tiny, source = saved("gpt2", tmp_path / "tiny"), tmp_path / "whole"
    shape = {"vocabulary": rows, "layers": 1, "width": width, "heads": 8, "inner": 1024}
    daybreak.create("gpt_neox", **shape, dtype="float16").save(source)
    command = [sys.executable, "-c", MEASURE, *map(str, (tiny, source, bits, tmp_path / "few"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    writing, loading = map(int, done.stdout.split())
    assert writing < rows * width * bits // 8 + 20e6 < 2 * rows * width
    assert loading < 3e6


def test_several_files(tmp_path: Path) -> None:
    source = saved("gpt_neox", tmp_path / "whole", "float16")
    told: list[tuple[int, int]] = []
    out = write(source, tmp_path / "few", shard_size="6KB", progress=lambda *now: told.append(now))
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) > 3 and not (out / "model.safetensors").exists()
    assert torch.equal(
        daybreak.load(out, dtype="auto").logits(TOKENS),
        daybreak.load(write(source, tmp_path / "one"), dtype="auto").logits(TOKENS),
    )
    done, totals = zip(*told, strict=True)
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    assert set(totals) == {sum(tensor.nbytes for tensor in tensors)} == {done[-1]}
    assert list(done) == sorted(done) and len(done) == len(tensors)


def test_each_weight_is_quantised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from daybreak.engine import quantised_folder

    made: list[tuple[int, ...]] = []

    def counted(weight: Tensor, *rest: Any, packed: Any = quantised_folder.packed) -> Any:
        made.append(tuple(weight.shape))
        return packed(weight, *rest)

    monkeypatch.setattr(quantised_folder, "packed", counted)
    write(saved("gpt_neox", tmp_path / "whole"), tmp_path / "few", Scheme(4, 32, True))
    assert len(made) == 2 * 6 + 1


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: change(tensors.get(name, torch.ones(3)))})


NUMBERS, SCALES = "blocks.1.mlp.up.numbers", "blocks.1.mlp.up.scales"
DAMAGE = {
    "a tensor is missing": (without(NUMBERS), rf"has no tensor '{NUMBERS}'; quantise .* again"),
    "a norm is missing": (without("final_norm.bias"), "has no tensor 'final_norm.bias'"),
    "a shape": (changed(SCALES, lambda scales: scales[:1].clone()), r"\[1, 1, 16\], .* needs \[6, 1, 16\]"),
    "numbers that are none": (changed(NUMBERS, Tensor.float), r"numbers' is of torch.float32.* torch.uint8"),
    "coarse scales": (changed(SCALES, Tensor.half), r"scales' is of torch.float16, .* torch.float32"),
    "whole numbers": (changed("final_norm.bias", Tensor.int), r"is of torch.int32"),
    "one too many": (changed("extra", torch.clone), "tensor 'extra' is none of the model's"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_tensors(kind: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    out = write(saved("gpt_neox", tmp_path / "whole"), tmp_path / "few")
    tensors = load_file(out / "model.safetensors")
    damage(tensors)
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(DaybreakError, match=message):
        daybreak.load(out)


def test_a_file_cut_short(tmp_path: Path) -> None:
    out = write(saved("gpt_neox", tmp_path / "whole"), tmp_path / "few")
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DaybreakError, match="ends at byte"):
        daybreak.load(out)
    file.unlink()
    with pytest.raises(DaybreakError, match="has no weights"):
        daybreak.load(out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 4}, r"shape \[2, 16, 16, 4\].* needs \[2, 8, 16, 4\]"),
        ({"bits": 3}, "quantization_config: bits is 3"),
        ({"bits": "many"}, "bits is 'many'"),
        ({"group": 32}, r"needs"),
        ({"zeros": True}, "has no tensor 'blocks.0.attention.query.zeros'"),
        ({"desc_act": True}, "config.json: quantization_config: there is no setting 'desc_act'"),
    ],
)
def test_a_config_that_says_something_else(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    out = write(saved("gpt_neox", tmp_path / "whole"), tmp_path / "few")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] |= changes
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(DaybreakError, match=message):
        daybreak.load(out)


def test_other_peoples_quantising_is_still_refused(tmp_path: Path) -> None:
    source = saved("gpt_neox", tmp_path / "whole")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(DaybreakError, match="quantization_config"):
        daybreak.load(source)


def test_what_a_quantised_folder_is_not_for(tmp_path: Path) -> None:
    from daybreak.compare.verify import verify_checkpoint
    from daybreak.train.settings import ModelSettings, Settings
    from daybreak.train.subject import architecture

    out = write(saved("gpt_neox", tmp_path / "whole"), tmp_path / "few")
    with pytest.raises(DaybreakError, match="has weights of 8 bits, not 4; leave bits out"):
        daybreak.load(out, bits=4)
    with pytest.raises(DaybreakError, match="for the CPU so far"):
        daybreak.load(out, device="meta")
    with pytest.raises(DaybreakError, match="take the checkpoint that it was made from"):
        opened_source(out, None, None, True)
    with pytest.raises(DaybreakError, match="quantised"):
        verify_checkpoint(str(out))
    with pytest.raises(DaybreakError, match="quantised"):
        architecture(Settings(model=ModelSettings(start=str(out))), None)
    with pytest.raises(DaybreakError, match="load it without bits to save it"):
        daybreak.load(out).save(tmp_path / "saved")


@pytest.mark.parametrize("existed", [False, True])
def test_nothing_is_left_of_one_that_fails(existed: bool, tmp_path: Path) -> None:
    source, out = saved("gpt_neox", tmp_path / "whole"), tmp_path / "few"
    if existed:
        out.mkdir()

    def stop(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, out, shard_size="6KB", progress=stop)
    assert out.exists() == existed and not (existed and any(out.iterdir()))
    tensors = load_file(source / "model.safetensors")
    tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"][3, 2] = float("inf")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(DaybreakError, match=r"blocks\.1\.mlp\.down\.weight.* not finite"):
        write(source, out)
    assert out.exists() == existed and not (existed and any(out.iterdir()))


def test_a_destination_in_use(tmp_path: Path) -> None:
    source = saved("gpt_neox", tmp_path / "whole")
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    with pytest.raises(DaybreakError, match="not an empty folder"):
        write(source, source)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved("gpt_neox", tmp_path / "whole")
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(DaybreakError, match=r"few needs 0\.0 GB .* free there"):
        write(source, tmp_path / "few")
    assert not (tmp_path / "few").exists()
