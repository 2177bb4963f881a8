"""Calibration of whole models: what each matrix reads is found, in every family; a trained one loses less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import daybreak
from daybreak import families
from daybreak.architecture import Blanks
from daybreak.checkpoint.convert import Parts, opened_source
from daybreak.checkpoint.fill import empty_decoder, matched
from daybreak.cli.main import run
from daybreak.engine import calibration
from daybreak.engine.calibration import calibrate, windows, with_blank
from daybreak.engine.gptq import Inputs, fitted
from daybreak.engine.packed import Packed, unpack
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_folder import write_quantised
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder, Tied
from daybreak.text.train_tokenizer import train_tokenizer
from tests.unit.test_quantised_folder import saved

FOUR = Scheme(4, 32)


def texts(count: int = 3, length: int = 20, vocabulary: int = 50) -> list[Tensor]:
    draw = torch.Generator().manual_seed(7)
    return [torch.randint(10, vocabulary, (length,), generator=draw) for _ in range(count)]


def known(source: Path, scheme: Scheme, scratch: Path, **options: Any) -> dict[str, Packed]:
    opened = opened_source(source, None, None, True)
    decoder = empty_decoder(opened.architecture)
    uses = matched(opened.spelled or opened.family, decoder, opened.found, opened.folder)
    scratch.mkdir()
    parts = Parts(uses, opened.architecture, opened.dtype)
    return calibrate(parts, opened.architecture, scheme, texts(), scratch, **options)


def read_by(decoder: Decoder, name: str, arranged: Sequence[Tensor]) -> Tensor:
    """All that a layer reads of the texts, in a plain pass of the whole model."""
    found: list[Tensor] = []
    layer = decoder.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(0, 1)))
    with torch.inference_mode():
        for text in arranged:
            decoder.logits(text[None])
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("name", families.NAMES)
def test_each_matrix_is_rounded_for_what_it_reads(name: str, tmp_path: Path) -> None:
    """Plainly: the model in memory, one matrix after another replaced, inputs from passes of all of it."""
    source = saved(name, tmp_path / "whole")
    decoder = daybreak.load(source).decoder
    arranged = [with_blank(text, decoder.architecture.blanks) for text in texts()]
    found = known(source, FOUR, tmp_path / "scratch")
    layers = {
        module_name: module
        for module_name, module in decoder.named_modules()
        if isinstance(module, nn.Linear | Tied)
    }
    assert set(found) == {
        "tokens.weight" if isinstance(one, Tied) else f"{key}.weight" for key, one in layers.items()
    }
    for key in found:  # in the order of rounding
        layer = "tied_head" if key == "tokens.weight" else key.removesuffix(".weight")
        weight = decoder.get_parameter(key)
        inputs = read_by(decoder, layer, arranged)
        whole = unpack(found[key], *weight.shape, FOUR).whole()
        expected = fitted(weight.detach(), Inputs.of(inputs.t() @ inputs / len(inputs)), FOUR).whole()
        # Sums in another order: here and there a weight half way between two numbers falls the other way.
        assert ((whole - expected).abs() > 1e-6).float().mean() < 0.02, key
        if layer != "tied_head":
            weight.data.copy_(whole)


def test_matrices_that_read_the_same_share_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(hessian: Tensor, name: str, real: Any = Inputs.of) -> Inputs:
        made.append(name.removesuffix(".weight").rpartition("blocks.0.")[2])
        return real(hessian, name)  # type: ignore[no-any-return]

    monkeypatch.setattr(calibration.Inputs, "of", noted)
    known(saved("llama", tmp_path / "llama"), FOUR, tmp_path / "one")
    assert made[:4] == ["attention.query", "attention.out", "mlp.gate", "mlp.down"]
    made.clear()
    known(saved("gpt_j", tmp_path / "gpt_j"), FOUR, tmp_path / "two")
    assert made[:3] == ["attention.query", "attention.out", "mlp.up"]


def test_windows() -> None:
    tokens = list(range(5000))
    found = windows(tokens, 2048, 1600)
    assert [int(one[0]) for one in found] == [0, 1536, 3072] and {len(one) for one in found} == {512}
    assert [one.tolist() for one in windows(tokens[:1100], 2048)] == [tokens[:512], tokens[512:1024]]
    assert {len(one) for one in windows(tokens, 24)} == {24} and len(windows(tokens, 24)) == 208
    for few, most in ((1023, 16384), (5000, 1000)):
        with pytest.raises(DaybreakError, match=r"tokens are too few to calibrate on, it takes 1,024"):
            windows(tokens[:few], 2048, most)


def test_with_blank() -> None:
    text = torch.arange(10)
    assert torch.equal(with_blank(text, None), text)
    blanks = Blanks(start=91, end=92, mask=93, rest=94)
    assert with_blank(text, blanks).tolist() == [0, 1, 2, 3, 4, 94, 91, 5, 6, 7]


def write(source: Path, out: Path, scheme: Scheme = FOUR, **options: Any) -> Path:
    write_quantised(opened_source(source, None, None, True), out, scheme, texts=texts(), **options)
    return out


@pytest.mark.parametrize(
    "scheme", [FOUR, Scheme(4, 64, True), Scheme(8), Scheme(4, 32, embeddings=True)], ids=str
)
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_folder_has_what_was_calibrated(name: str, scheme: Scheme, tmp_path: Path) -> None:
    source = saved(name, tmp_path / "whole")
    told: list[tuple[int, int]] = []
    out = write(source, tmp_path / "few", scheme, progress=lambda *now: told.append(now))
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(out / "model.safetensors")
    found = known(source, scheme, tmp_path / "scratch")
    for key, packed in found.items():
        stored = "tied_head" if key == "tokens.weight" else key.removesuffix(".weight")
        for field, tensor in packed._asdict().items():
            assert tensor is None or torch.equal(tensors[f"{stored}.{field}"], tensor)
    assert ("tokens.weight" in found) == (name == "gpt2" and not scheme.embeddings)
    middle = told.index((told[len(found) - 1][1],) * 2)
    assert middle == len(found) - 1 and told[-1][0] == told[-1][1]
    daybreak.load(out)


@pytest.mark.parametrize("existed", [False, True])
def test_nothing_is_left_of_one_that_fails(existed: bool, tmp_path: Path) -> None:
    source, out = saved("gpt_neox", tmp_path / "whole"), tmp_path / "few"
    if existed:
        out.mkdir()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, out, progress=stop)
    assert out.exists() == existed and not (existed and any(out.iterdir()))
    tensors = load_file(source / "model.safetensors")
    tensors["gpt_neox.layers.1.input_layernorm.weight"][3] = float("inf")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(
        DaybreakError, match=r"blocks\.1\.attention\.query\.weight: what it reads .* not finite"
    ):
        write(source, out)
    assert out.exists() == existed and not (existed and any(out.iterdir()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A model that has learned something of this package's source; what it learned from; other source."""
    files = sorted((Path(daybreak.__file__).parent / "engine").glob("*.py"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    learned, other = text[: len(text) * 4 // 5], text[len(text) * 4 // 5 :]
    model = daybreak.create("gpt_neox", vocabulary=300, layers=2, width=64, heads=2, inner=160, context=64)
    model.tokenizer = train_tokenizer([learned], 300)
    tokens = torch.tensor(model.tokenizer.encode(learned, special=False))
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    for _ in range(100):
        starts = torch.randint(len(tokens) - 64, (8,), generator=draw).tolist()
        batch = torch.stack([tokens[start : start + 64] for start in starts])
        logits = model.decoder.logits(batch[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("trained") / "model"
    model.save(folder)
    return folder, learned, other


@pytest.mark.parametrize(
    "options", [[], ["--group", "128"], ["--zeros"], ["--group", "0", "--embeddings"]], ids=str
)
def test_a_trained_model_loses_less(
    options: list[str], trained: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, learned, other = trained
    (tmp_path / "learned").write_text(learned, encoding="utf-8")
    (tmp_path / "other").write_text(other, encoding="utf-8")
    words = [
        "quantize",
        str(folder),
        "--bits",
        "4",
        "--text",
        str(tmp_path / "other"),
        "--tokens",
        "2048",
        "--json",
        *options,
    ]
    assert run([*words, "--out", str(tmp_path / "plain")]) == 0
    plain = json.loads(capsys.readouterr().out)
    calibrated = ["--calibrate", str(tmp_path / "learned"), "--calibration-tokens", "2048"]
    assert run([*words, "--out", str(tmp_path / "calibrated"), *calibrated]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == plain["bytes"] and plain["damage"]["kl"] > 1e-3
    assert told["damage"]["kl"] < 0.8 * plain["damage"]["kl"]


def test_wrong_values_are_one_line(
    trained: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    daybreak.create("gpt_neox", vocabulary=80, layers=1, width=32, heads=2).save(bare)
    (tmp_path / "short").write_text("def", encoding="utf-8")
    (tmp_path / "text").write_text(trained[1], encoding="utf-8")
    short, text = str(tmp_path / "short"), str(tmp_path / "text")
    cases = [
        (
            trained[0],
            ["--calibrate", short],
            "are too few to calibrate on, it takes 1,024; take a longer text",
        ),
        (trained[0], ["--calibrate", "no-such-file"], "no-such-file cannot be read"),
        (
            trained[0],
            ["--calibrate", text, "--calibration-tokens", "8"],
            "should be greater than or equal to 1024",
        ),
        (bare, ["--calibrate", text], "has no tokenizer, so no text can be read; leave --calibrate out"),
    ]
    for source, options, message in cases:
        status = run(["quantize", str(source), "--out", str(tmp_path / "few"), *options])
        told = capsys.readouterr()
        assert (status, told.out) == (2, "") and told.err.count("\n") == 1 and message in told.err
        assert not (tmp_path / "few").exists()
