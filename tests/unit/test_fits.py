"""`daybreak describe --fits`: bytes are those of real models, and verdicts follow from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import daybreak
from daybreak import families, parameters
from daybreak.architecture import Architecture
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.convert import opened_source
from daybreak.cli.main import run
from daybreak.compare import fits, speeds
from daybreak.compare.fits import BESIDE, FORMATS, Machine, Memory
from daybreak.engine.pages import PageLayout
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_folder import write_quantised
from daybreak.errors import DaybreakError
from tests.unit.test_checkpoint_roundtrip import SHAPES

GIB = 1 << 30
ROOMY = Machine(Memory(100 * GIB, 90 * GIB, False), speed=20e9, disk=None)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("name", families.NAMES)
def test_bytes_are_those_of_the_folder(name: str, embeddings: bool, bits: int, tmp_path: Path) -> None:
    model = daybreak.create(name, **SHAPES[name])
    model.save(tmp_path / "whole")
    scheme = Scheme.usual(bits, embeddings)
    opened = opened_source(tmp_path / "whole", None, None, False)
    write_quantised(opened, tmp_path / "few", scheme)
    stored = files.weights(tmp_path / "few").values()
    told = fits.weights(model.architecture, scheme)
    assert told.held == sum(one.bytes for one in stored)
    looked_up = ("tokens.", "positions.", "block_positions.")
    assert told.read == sum(one.bytes for one in stored if not one.name.startswith(looked_up))
    assert told.read <= told.held and told.kept <= told.held


@pytest.mark.parametrize("name", families.NAMES)
def test_bytes_in_floating_point(name: str) -> None:
    shape = families.by_name(name).architecture(**SHAPES[name])
    parts = parameters.breakdown(shape)
    for dtype in ("float32", "bfloat16"):
        told, size = fits.weights(shape, dtype), parameters.weight_bytes(shape, dtype) // parts.total
        assert told.held == parts.total * size
        tables = parts.positions + (
            0 if shape.tied else shape.vocabulary * (shape.embedding_width or shape.width)
        )
        assert told.read == (parts.total - tables) * size


def test_published_sizes_are_told_without_weights() -> None:
    for family in families.everyone():
        for size in family.sizes:
            told = fits.fits(size, ROOMY)
            assert [one["format"] for one in told["formats"]][:4] == list(FORMATS)
            sizes = [one["weight_bytes"] for one in told["formats"][:4]]
            assert sizes[0] == 2 * sizes[1] > sizes[2] > sizes[3]
            assert told["cache"]["float32"]["per_token"] == parameters.cache_bytes(
                family.architecture(size), 1, "float32"
            )


def machine(free: int, **more: Any) -> Machine:
    return replace(ROOMY, memory=Memory(100 * GIB, free, False), **more)


def of(name: str, told: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in told["formats"] if one["format"] == name)


def test_verdicts_follow_from_the_bytes() -> None:
    shape = families.by_name("gpt_neox").architecture("pythia-1.4b")
    needed = fits.weights(shape, "float32").held + BESIDE + PageLayout.of(shape, "float32").bytes_for(2048)
    found = of("float32", fits.fits("pythia-1.4b", machine(needed)))
    assert (found["verdict"], found["tokens_that_fit"]) == ("fits", 2048)
    found = of("float32", fits.fits("pythia-1.4b", machine(needed - 1)))
    assert found["verdict"] == "fits" and 1900 < found["tokens_that_fit"] < 2048
    weights = fits.weights(shape, "float32")
    found = of("float32", fits.fits("pythia-1.4b", machine(weights.held)))
    assert (found["verdict"], found["tokens_that_fit"]) == ("from disk", 2048)
    found = of("float32", fits.fits("pythia-1.4b", machine(weights.kept + BESIDE)))
    assert (found["verdict"], found["tokens_that_fit"]) == ("too large", 0)
    small = fits.fits("pythia-1.4b", machine(weights.held // 2))
    assert [one["verdict"] for one in small["formats"][:4]] == ["from disk", "from disk", "fits", "fits"]


def test_roofs_are_speed_by_bytes() -> None:
    told = fits.fits("bloom-560m", replace(ROOMY, disk=5e8))
    found, shape = of("int8", told), families.by_name("bloom").architecture("bloom-560m")
    rates = found["tokens_per_second"]
    assert rates["short"] == pytest.approx(20e9 / found["read_bytes_per_token"])
    assert rates["from_disk"] == pytest.approx(rates["short"] / 40)
    cache = told["cache"]["float32"]["per_token"] * shape.context
    assert rates["whole_context"] == pytest.approx(20e9 / (found["read_bytes_per_token"] + cache))
    assert rates["gpu"] is None and found["on_gpu"] is None
    # The head is the embedding, so it is read; what is only looked up is not.
    assert of("float32", told)["read_bytes_per_token"] == of("float32", told)["weight_bytes"]
    table = 4 * shape.vocabulary * shape.width
    assert found["weight_bytes"] - found["read_bytes_per_token"] == table


def test_windows_keep_and_read_less() -> None:
    told = fits.fits("gpt-neo-1.3b", ROOMY)
    size, context = told["cache"]["float32"], told["context"]
    assert size["context"] < 0.65 * size["per_token"] * context
    found = of("float32", told)
    cached = 20e9 / found["tokens_per_second"]["whole_context"] - found["read_bytes_per_token"]
    assert cached == pytest.approx(size["per_token"] / 2 * (context + 256), rel=1e-6)


def test_a_gpu_is_asked_for_what_it_can_hold() -> None:
    with_gpu = replace(
        ROOMY, gpu=Memory(16 * GIB, 15 * GIB, False), gpu_name="a GPU of 16 GiB", gpu_speed=500e9
    )
    told = fits.fits("bloom-7b1", with_gpu)
    assert told["gpu"] == {"name": "a GPU of 16 GiB", "total": 16 * GIB, "free": 15 * GIB, "limited": False}
    assert [one["on_gpu"] for one in told["formats"][:4]] == [False, True, None, None]
    assert of("bfloat16", told)["tokens_per_second"]["gpu"] == pytest.approx(500e9 / 14_138_032_128)


def test_a_quantised_folder_has_a_line_of_its_own(tmp_path: Path) -> None:
    model = daybreak.create("gpt_neox", **SHAPES["gpt_neox"])
    model.save(tmp_path / "whole")
    opened = opened_source(tmp_path / "whole", None, None, False)
    write_quantised(opened, tmp_path / "own", Scheme(8, 64, zeros=True))
    write_quantised(opened, tmp_path / "usual", Scheme.usual(4))
    own, usual = (fits.fits(str(tmp_path / name), ROOMY) for name in ("own", "usual"))
    assert of("int8, as in the folder", own)["weight_bytes"] == sum(
        one.bytes for one in files.weights(tmp_path / "own").values()
    )
    assert len(own["formats"]) == len(usual["formats"]) + 1


def test_a_family_has_no_size() -> None:
    with pytest.raises(
        DaybreakError, match="bloom is a family, and has no size of its own; name one of bloom-560m"
    ):
        fits.fits("bloom", ROOMY)


# The machine
# --------------------------------------------------------------------------------------------------------


def test_this_machine_is_measured_quickly(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(20 << 20))
    found = fits.this_machine(tmp_path)
    assert 0 < found.memory.free <= found.memory.total
    assert 1e8 < found.speed < 1e13
    assert found.disk is None or 1e5 < found.disk < 1e12
    assert (found.gpu is None) == (not torch.cuda.is_available())


def test_a_disk_that_cannot_be_measured(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"too short")
    assert speeds.disk_speed(small) is None
    assert speeds.disk_speed(tmp_path / "none") is None


# The command
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def given_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = Machine(Memory(16 * GIB, 12 * GIB, True), speed=10 * GIB, disk=None)
    monkeypatch.setattr(fits, "this_machine", lambda place: limited)


@pytest.mark.usefixtures("given_machine")
def test_the_command_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "bloom-7b1", "--fits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "free memory: 12 GiB by the limit of a control group, of 16 GiB; no GPU that this PyTorch can use"
    )
    shown = [" ".join(line.split()) for line in lines]
    assert "float32 26.3 GiB 1.88 GiB from disk as fast as the disk, from the disk" in shown
    assert "int4, embeddings too 4.12 GiB 1.88 GiB fits 2.43 (1.67 at the end of the context)" in shown
    assert any(line.startswith("the disk was not measured") for line in shown)


@pytest.mark.usefixtures("given_machine")
def test_the_command_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "gpt2", "--fits", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"memory", "gpu", "speeds", "context", "beside_bytes", "cache", "formats"}
    assert told["memory"]["limited"] is True and told["speeds"]["memory"] == 10 * GIB
    assert run(["describe", "bloom", "--fits"]) == 2
    assert "is a family" in capsys.readouterr().err


def test_an_unlimited_context_is_cut() -> None:
    """What fits is said in tokens where the whole context does not."""
    long = Architecture(context=100_000, layers=2, width=64, heads=2)
    layout = PageLayout.of(long, "float32")
    assert fits._tokens_in(layout, 100_000, layout.bytes_for(5_000)) in range(5_000, 5_017)
    assert fits._tokens_in(layout, 100_000, 10) == 0
