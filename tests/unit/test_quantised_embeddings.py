"""The token embedding in few bits: the rows that are looked up, the memory that is saved, the logits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import daybreak
from daybreak import families
from daybreak.checkpoint.convert import opened_source
from daybreak.cli.main import run
from daybreak.compare.redraw import redraw
from daybreak.engine import quantised_linear
from daybreak.engine.kernels.build import Library
from daybreak.engine.packed import pack, shapes, unpack_rows
from daybreak.engine.quantised import Scheme, quantise
from daybreak.engine.quantised_folder import write_quantised
from daybreak.engine.quantised_linear import QuantisedLinear, QuantisedMatrix
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from tests.unit.test_checkpoint_roundtrip import SHAPES
from tests.unit.test_quantised_weights import SCHEMES, close, drawn

TOKENS = torch.arange(1, 15).view(2, 7)
TIED = [name for name in families.NAMES if families.by_name(name).architecture().tied]


def saved(name: str, folder: Path) -> LanguageModel:
    model = daybreak.create(name, **SHAPES[name])
    redraw(model.decoder, 1)
    model.save(folder)
    return model


@given(st.integers(1, 80), st.integers(1, 300), st.sampled_from(SCHEMES), st.data())
def test_rows_are_those_of_the_matrix(rows: int, width: int, scheme: Scheme, data: st.DataObject) -> None:
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=20)), dtype=torch.int64)
    weights = quantise(drawn(rows, width, rows), scheme)
    found = unpack_rows(pack(weights, scheme), numbers, width, scheme)
    assert torch.equal(found.whole(), weights.whole()[numbers])


def bytes_of(decoder: Decoder) -> int:
    """Of all tensors; what two places share counts once."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.numel()}.values())


def packed_bytes(rows: int, width: int, scheme: Scheme) -> int:
    sizes = shapes(rows, width, scheme)
    return sum(math.prod(shape) * (1 if name == "numbers" else 4) for name, shape in sizes.items())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", families.NAMES)
def test_memory_to_the_byte(name: str, bits: int, tmp_path: Path) -> None:
    """A float32 table goes. Where the head has one of its own a packed one comes, and a tied one is there."""
    model = saved(name, tmp_path)
    before = bytes_of(daybreak.load(tmp_path, bits=bits).decoder)
    after = bytes_of(daybreak.load(tmp_path, bits=bits, embeddings=True).decoder)
    rows, width = model.decoder.tokens.weight.shape
    packed = packed_bytes(rows, width, Scheme.usual(bits))
    assert before - after == 4 * rows * width - (0 if name in TIED else packed)
    assert len(TIED) > 3 and len(TIED) < len(families.NAMES)


def dequantised(source: Path, few: Decoder) -> Decoder:
    """An ordinary decoder with the weights that the numbers stand for."""
    plain = daybreak.load(source).decoder
    with torch.no_grad():
        for name, module in few.named_modules():
            if isinstance(module, QuantisedMatrix):
                own = "tokens" if name == "tied_head" else name
                plain.get_submodule(own).weight.copy_(module.whole())  # type: ignore[operator, union-attr]
    return plain


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", families.NAMES)
def test_logits_are_those_of_the_dequantised_weights(
    name: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernels to rounding errors; with them up to what rounding activations does."""
    saved(name, tmp_path)
    few = daybreak.load(tmp_path, bits=bits, embeddings=True)
    plain = dequantised(tmp_path, few.decoder)
    assert torch.equal(few.decoder.tokens(TOKENS), plain.tokens(TOKENS))
    expected = plain.logits(TOKENS).detach().double()
    found = few.logits(TOKENS).double()
    kl = (expected.softmax(-1) * (expected.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
    assert kl.mean() < close(8)
    monkeypatch.setattr(quantised_linear, "library", lambda: Library(None, "none"))
    torch.testing.assert_close(few.logits(TOKENS).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt"])
def test_the_folder_has_it_too(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "whole")
    scheme = Scheme(4, 64, True, embeddings=True)
    write_quantised(opened_source(tmp_path / "whole", None, None, True), tmp_path / "few", scheme)
    loaded = daybreak.load(tmp_path / "few", embeddings=True)
    decoder = loaded.decoder
    assert next(one for one in decoder.modules() if isinstance(one, QuantisedLinear)).scheme == scheme
    assert torch.equal(decoder.tokens(TOKENS), dequantised(tmp_path / "whole", decoder).tokens(TOKENS))
    tables = [name for name, _ in decoder.named_buffers() if name.startswith(("tokens.", "tied_head."))]
    assert len([name for name in tables if name.endswith("numbers")]) == 1
    assert loaded.generate([[1, 2, 3]], max_new_tokens=3, temperature=0, ignore_eos=True)[0].tokens


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("embeddings", [False, True])
def test_every_dtype_of_the_rest(name: str, dtype: str, embeddings: bool, tmp_path: Path) -> None:
    saved(name, tmp_path / "float32")
    daybreak.load(tmp_path / "float32", dtype=dtype).save(tmp_path / "whole")
    model = daybreak.load(tmp_path / "whole", dtype=dtype, bits=8, embeddings=embeddings)
    assert model.dtype == getattr(torch, dtype) == model.decoder.tokens(TOKENS).dtype
    scheme = Scheme.usual(8, embeddings)
    write_quantised(opened_source(tmp_path / "whole", None, None, True), tmp_path / "few", scheme)
    again = daybreak.load(tmp_path / "few", dtype=dtype)
    assert again.dtype == model.dtype
    assert torch.equal(again.logits(TOKENS), model.logits(TOKENS))


def test_what_makes_no_sense_is_said(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "whole")
    with pytest.raises(DaybreakError, match="say bits=8 or bits=4"):
        daybreak.load(tmp_path / "whole", embeddings=True)
    write_quantised(opened_source(tmp_path / "whole", None, None, True), tmp_path / "few", Scheme())
    with pytest.raises(DaybreakError, match="has its token embedding whole"):
        daybreak.load(tmp_path / "few", embeddings=True)
    model = daybreak.load(tmp_path / "whole", bits=8, embeddings=True)
    with pytest.raises(DaybreakError, match="token id is outside"):
        model.logits(torch.tensor([[61]]))
    with pytest.raises(DaybreakError, match="without bits to save it"):
        model.save(tmp_path / "saved")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved("gpt2", tmp_path / "whole")
    source, out = str(tmp_path / "whole"), str(tmp_path / "few")
    assert run(["quantize", source, "--out", out, "--embeddings"]) == 0
    assert "a scale for each row, the token embedding too, " in capsys.readouterr().out
    assert "tokens.weight" not in (tmp_path / "few" / "model.safetensors").read_bytes()[:9000].decode(
        errors="ignore"
    )
