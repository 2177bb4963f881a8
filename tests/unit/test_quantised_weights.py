"""Weights of few bits: the numbers, their packing, the kernels beside float64, and whole models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import daybreak
from daybreak import families
from daybreak.compare.redraw import redraw
from daybreak.engine.kernels import build
from daybreak.engine.kernels.linear import multiply
from daybreak.engine.packed import group_of, pack, shapes, unpack
from daybreak.engine.quantised import GROUPS, Quantised, Scheme, quantise
from daybreak.errors import DaybreakError
from tests.unit.test_checkpoint_roundtrip import SHAPES

SCHEMES = [
    Scheme(bits, group, zeros) for bits in (8, 4) for group in (None, *GROUPS) for zeros in (False, True)
]  # type: ignore[arg-type]
SIZES = st.integers(1, 80)
KERNELS = pytest.mark.skipif(build.library().functions is None, reason=build.library().about)


def drawn(rows: int, width: int, seed: int) -> Tensor:
    """Weights of very different sizes, a row of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) * torch.logspace(-3, 2, rows)[:, None]
    weight[rows // 2] = 0
    return weight


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 300), st.sampled_from(SCHEMES), st.integers(0, 99))
def test_a_weight_is_off_by_half_a_step_at_most(rows: int, width: int, scheme: Scheme, seed: int) -> None:
    weight = drawn(rows, width, seed)
    found = quantise(weight, scheme)
    group = scheme.group or width
    steps = found.scales.repeat_interleave(group, 1)[:, :width]
    # A zero point is rounded as well, so that the outermost numbers may be cut off by half a step more.
    allowed = (1.0 if scheme.zeros else 0.5) * steps * 1.001 + 1e-12
    assert ((found.whole() - weight).abs() <= allowed).all()
    assert found.numbers.max() <= (255 if scheme.bits == 8 else 15)
    assert found.numbers.min() >= (0 if scheme.bits == 4 and scheme.zeros else 1)
    assert (found.whole()[weight == 0] == 0).all(), "a weight of 0 stays 0"


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 300), st.sampled_from(SCHEMES), st.integers(0, 99))
def test_packing_loses_nothing(rows: int, width: int, scheme: Scheme, seed: int) -> None:
    weights = quantise(drawn(rows, width, seed), scheme)
    packed = pack(weights, scheme)
    assert {name: tuple(getattr(packed, name).shape) for name in shapes(rows, width, scheme)} == shapes(
        rows, width, scheme
    )
    again = unpack(packed, rows, width, scheme)
    assert torch.equal(again.numbers, weights.numbers) and torch.equal(again.scales, weights.scales)
    assert (again.zeros is None) == (weights.zeros is None)
    assert torch.equal(again.whole(), weights.whole())


def rounded(inputs: Tensor, group: int) -> Tensor:
    """Activations as the kernels round them, in float64: to 127 steps on either side of 0, by groups."""
    tokens, width = inputs.shape
    padded = torch.zeros(tokens, -(-width // group) * group)
    padded[:, :width] = inputs
    parts = padded.view(tokens, -1, group)
    largest = parts.abs().amax(-1, keepdim=True)
    factor = torch.where(largest > 0, 127.0 / largest, 0.0)  # in float32, as there: a tie must fall alike
    numbers = (parts * factor).round()
    return (numbers.double() * (largest / 127.0).double()).view(tokens, -1)[:, :width]


def exact(inputs: Tensor, weights: Quantised, bias: Tensor | None, scheme: Scheme) -> Tensor:
    """The product in float64."""
    found = rounded(inputs, group_of(scheme)) @ weights.whole(torch.float64).t()
    return found if bias is None else found + bias.double()


@KERNELS
@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 21),
    SIZES,
    st.integers(1, 300),
    st.sampled_from(SCHEMES),
    st.booleans(),
    st.integers(0, 99),
)
def test_products_are_those_of_float64(
    tokens: int, rows: int, width: int, scheme: Scheme, with_bias: bool, seed: int
) -> None:
    weights = quantise(drawn(rows, width, seed), scheme)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(tokens, width, generator=generator) * 10 ** torch.randn(
        tokens, 1, generator=generator
    )
    inputs[0, 0] = 0
    bias = torch.randn(rows, generator=generator) if with_bias else None
    found = multiply(inputs, pack(weights, scheme), bias, rows, scheme).double()
    expected = exact(inputs, weights, bias, scheme)
    # What may be lost is the rounding of float32 in sums over the groups.
    size = rounded(inputs, group_of(scheme)).abs() @ weights.whole(torch.float64).abs().t()
    size += 0 if bias is None else bias.double().abs()
    assert ((found - expected).abs() <= 2e-6 * size + 1e-30).all()


@KERNELS
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_numbers_do_not_overflow(scheme: Scheme, sign: int) -> None:
    """All weights and activations at their ends, for as wide a layer as there is."""
    width = 16384
    weight = torch.full((17, width), 3.0)
    weight[1::2] = -3.0
    inputs = torch.full((5, width), 2.0 * sign)
    inputs[2, ::2] *= -1
    weights = quantise(weight, scheme)
    found = multiply(inputs, pack(weights, scheme), None, 17, scheme)
    expected = exact(inputs, weights, None, scheme)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-2)
    assert expected.abs().max() > 90_000


@KERNELS
def test_tokens_do_not_depend_on_their_neighbours() -> None:
    scheme = Scheme(4, 32)
    packed = pack(quantise(drawn(50, 100, 0), scheme), scheme)
    inputs = torch.randn(19, 100)
    together = multiply(inputs, packed, None, 50, scheme)
    for row in range(19):
        assert torch.equal(multiply(inputs[row : row + 1], packed, None, 50, scheme)[0], together[row])


@KERNELS
def test_the_sanitizer_finds_nothing(tmp_path: Path) -> None:
    """Kernels built with gcc's address and undefined-behaviour sanitizers, at sizes that are no multiples."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("gcc's sanitizers need gcc")
    library = tmp_path / "kernels.so"
    flags = [flag for flag in build.FLAGS if flag != "-O3"]
    sources = [str(Path(build.__file__).parent / name) for name in build.SOURCES]
    sanitizers = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, "-shared", *sanitizers, *sources, "-o", str(library)], check=True)
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("gcc's address sanitizer is not installed")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "sanitised_kernels.py"), str(library)],
        env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "192 products, 108 steps"


def close(bits: int) -> float:
    """KL of next tokens, in nats, that random weights of so few bits may cost."""
    return 5e-4 if bits == 8 else 0.1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", families.NAMES)
def test_every_family_is_quantised_as_it_is_read(name: str, bits: int, tmp_path: Path) -> None:
    model = daybreak.create(name, **SHAPES[name])
    redraw(model.decoder, 1)
    model.save(tmp_path)
    quantised = daybreak.load(tmp_path, bits=bits)
    tokens = torch.arange(1, 15).view(2, 7)
    whole, few = (one.logits(tokens).log_softmax(-1).double() for one in (model, quantised))
    assert 0 < (whole.exp() * (whole - few)).sum(-1).mean() < close(bits)
    assert not [one for one in quantised.decoder.parameters() if one.device.type == "meta"]
    if model.architecture.blanks is not None:
        return
    written = quantised.generate([[1, 2, 3], [4, 5]], max_new_tokens=4, temperature=0, ignore_eos=True)
    again = quantised.logits(torch.tensor([[1, 2, 3, *written[0].tokens[:-1]]]))[0, 2:].argmax(-1)
    assert again.tolist() == list(written[0].tokens)


def test_without_kernels_weights_are_unpacked(tmp_path: Path) -> None:
    model = daybreak.create("gpt_neox", **SHAPES["gpt_neox"])
    redraw(model.decoder, 1)
    model.save(tmp_path)
    program = (
        "import sys, torch, daybreak\n"
        "from daybreak.engine.kernels.build import library\n"
        "model = daybreak.load(sys.argv[1], bits=8)\n"
        "torch.save(model.logits(torch.arange(1, 15).view(2, 7)), sys.argv[2])\n"
        "print(library().about)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "logits")],
        env={**os.environ, build.OFF: "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "DAYBREAK_KERNELS=0 says so\n"
    plain = torch.load(tmp_path / "logits")
    found = daybreak.load(tmp_path, bits=8).logits(torch.arange(1, 15).view(2, 7))
    assert 0 < (found - plain).abs().max() < 0.05 * plain.std()


def test_what_quantised_models_cannot_do_is_said(tmp_path: Path) -> None:
    daybreak.create("bloom", **SHAPES["bloom"]).save(tmp_path / "whole")
    model = daybreak.load(tmp_path / "whole", bits=8)
    with pytest.raises(DaybreakError, match="load it without bits to save it"):
        model.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(DaybreakError, match="weights of 5 bits"):
        daybreak.load(tmp_path / "whole", bits=5)
    with pytest.raises(DaybreakError, match="for the CPU so far"):
        daybreak.load(tmp_path / "whole", bits=8, device="meta")


@pytest.mark.parametrize(
    ("options", "named"), [({"bits": 3}, "3 bits"), ({"bits": 4, "group": 48}, "48 inputs")]
)
def test_other_schemes_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(DaybreakError, match=named):
        Scheme(**options)


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DaybreakError, match="not finite"):
        quantise(torch.tensor([[1.0, float("nan")]]), Scheme())


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'no such instruction' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(broken))
    found = build.library.__wrapped__()
    assert found.functions is None
    assert found.about == f"building them with {broken} failed: no such instruction"
    assert not list((tmp_path / "cache").rglob("*.so"))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert build.library.__wrapped__().about == "there is no C++ compiler (g++ or clang++) on this machine"


@KERNELS
def test_kernels_that_cannot_be_kept_serve_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if flag != "-O3"))
    found = build.library.__wrapped__()
    assert found.functions is not None and "this process alone" in found.about


@KERNELS
def test_kernels_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", tuple(flag for flag in build.FLAGS if flag != "-O3"))
    assert build.library.__wrapped__().functions is not None
    (file,) = (tmp_path / "daybreak" / "kernels").iterdir()
    before = file.stat().st_mtime_ns
    assert build.library.__wrapped__().functions is not None
    assert [(one, one.stat().st_mtime_ns) for one in file.parent.iterdir()] == [(file, before)]
