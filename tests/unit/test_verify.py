"""`daybreak verify` names the first module that departs; its numbers and exit codes are honest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import daybreak
from daybreak.cli.main import run
from daybreak.compare import ledger, parity
from daybreak.compare.folders import compare_folders
from daybreak.compare.mutants import Verdict
from daybreak.compare.reference import redraw
from daybreak.compare.verify import MODE_NAMES, Comparison, Report, trial_pair
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel


def model() -> LanguageModel:
    made = daybreak.create("gpt2", vocabulary=61, context=32, layers=3, width=24, heads=3, inner=40)
    redraw(made.decoder, seed=4)
    return made


def saved(made: LanguageModel, folder: Path) -> str:
    made.save(folder)
    return str(folder)


def test_the_same_weights_are_the_same(tmp_path: Path) -> None:
    one, other = saved(model(), tmp_path / "a"), saved(model(), tmp_path / "b")
    found = compare_folders(one, other)
    assert found.same and found.difference == 0 and not found.weights and not found.fields
    assert found.checked > 3 * 10


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("tokens.weight", "tokens"),
        ("blocks.0.attention.value.bias", "blocks.0.attention.value"),
        ("blocks.1.mlp.down.weight", "blocks.1.mlp.down"),
        ("blocks.2.mlp_norm.weight", "blocks.2.mlp_norm"),
        ("final_norm.bias", "final_norm"),
    ],
)
def test_the_first_module_that_departs_is_named(parameter: str, module: str, tmp_path: Path) -> None:
    one = saved(model(), tmp_path / "a")
    changed = model()
    with torch.no_grad():
        dict(changed.decoder.named_parameters())[parameter].mul_(1.01)
    found = compare_folders(one, saved(changed, tmp_path / "b"))
    assert found.module == module
    assert list(found.weights) == [parameter]
    assert 1e-5 < found.difference < 1


def test_another_decision_is_named_with_the_module_that_shows_it(tmp_path: Path) -> None:
    folder = Path(saved(model(), tmp_path / "a"))
    other = Path(saved(model(), tmp_path / "b"))
    config = json.loads((other / "config.json").read_text())
    config["activation_function"] = "gelu"
    (other / "config.json").write_text(json.dumps(config))
    found = compare_folders(str(folder), str(other))
    assert found.fields == {"activation": ("gelu_tanh", "gelu")}
    assert found.module == "blocks.0.mlp.activation"


def test_a_weight_that_the_text_does_not_reach_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"vocabulary": 2000, "context": 128, "layers": 1, "width": 24, "heads": 3, "inner": 40}
    made = daybreak.create("gpt2", **shape)
    one = saved(made, tmp_path / "a")
    with torch.no_grad():
        made.decoder.positions.weight[100:] += 1.0
    found = compare_folders(one, saved(made, tmp_path / "b"))
    assert found.module is None and list(found.weights) == ["positions.weight"] and not found.same
    assert run(["verify", one, str(tmp_path / "b")]) == 1
    assert "agree on the tokens that were read" in capsys.readouterr().out


def test_a_wider_window_is_a_difference_and_the_text_reaches_it(tmp_path: Path) -> None:
    shape = {"vocabulary": 61, "context": 128, "layers": 2, "width": 24, "heads": 3, "inner": 40}
    made = daybreak.create("gpt_neo", **shape, windows=(None, 70))
    redraw(made.decoder, seed=4)
    one = saved(made, tmp_path / "a")
    other = Path(saved(made, tmp_path / "b"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "window_size": 71}))
    found = compare_folders(one, str(other))
    assert list(found.fields) == ["windows"] and found.module == "blocks.1.attention.out"


@pytest.mark.parametrize(
    "name", ["left-padded", "right-padded", "batch = singles", "packed", "left-padded, cached"]
)
def test_not_a_number_in_a_later_text_is_a_failure(name: str, tmp_path: Path) -> None:
    """`max(0.0, nan)` is 0.0: such a failure was once passed over."""
    mode = parity.MODES[name]
    pair = trial_pair("gpt2", "plain", tmp_path).pair
    with torch.no_grad():
        assert mode(pair) <= parity.BOUND

    def spoil(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        spoilt = output.clone()
        if len(output) > 1:
            spoilt[1] = float("nan")
        return spoilt

    hook = pair.decoder.final_norm.register_forward_hook(spoil)
    with torch.no_grad():
        assert mode(pair) == float("inf")
    hook.remove()


def test_gradients_that_are_no_numbers_fail() -> None:
    theirs = {"a": torch.ones(3), "b": torch.ones(3)}
    ours = {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan"), 1.0])}
    assert parity.gradient_difference(ours, theirs) == float("inf")


def test_not_a_number_departs(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.decoder.final_norm.bias[0] = float("nan")
    found = compare_folders(saved(model(), tmp_path / "a"), saved(broken, tmp_path / "b"))
    assert found.module == "final_norm"


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    wide = daybreak.create("gpt2", vocabulary=61, context=32, layers=1, width=30, heads=3)
    with pytest.raises(DaybreakError, match="differ in width"):
        compare_folders(saved(model(), tmp_path / "a"), saved(wide, tmp_path / "b"))


def test_the_command_between_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = saved(model(), tmp_path / "a"), saved(model(), tmp_path / "b")
    assert run(["verify", one, other]) == 0
    assert capsys.readouterr().out.startswith("same: ")
    changed = model()
    with torch.no_grad():
        changed.decoder.blocks[1].attention.out.weight.add_(0.1)  # type: ignore[union-attr, operator]
    assert run(["verify", one, saved(changed, tmp_path / "c"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first_module"] == "blocks.1.attention.out" and not found["same"]


def test_the_command_against_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", saved(model(), tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert set(found["comparisons"][0]["differences"]) == set(MODE_NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of"),
        (["--all", "--family", "opt"], "name one of"),
        (["--family", "blom"], "did you mean 'bloom'?"),
        (["--family", "gpt3"], "no reference"),
    ],
)
def test_wrong_use_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_ledger_shows_failures_and_survivors() -> None:
    good = dict.fromkeys(MODE_NAMES, 1e-7)
    bad = {**good, "packed": 3e-3}
    report = Report(
        "reference 1.0",
        [
            Comparison("opt", "odd shape", "float32", bad),
            Comparison("opt", "odd shape", "bfloat16", good, {"full pass": 1e-2, "gradients": 1e-2}),
        ],
        [
            ("opt", Verdict("architecture", "tied", "tied=False", "2.0e-01")),
            ("opt", Verdict("weights", "x", "y", "")),
        ],
    )
    assert not report.passed
    page = ledger.markdown(report)
    assert "1 of 2 comparisons are beyond their bound" in page
    assert "Mutants killed: **1 of 2**" in page
    assert "SURVIVED in opt: weights, x: y" in page
    shown = "\n".join(ledger.plain(report))
    assert "BEYOND THE BOUND in odd shape" in shown and "mutants killed: 1 of 2" in shown


def test_a_checkpoint_without_a_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = daybreak.create("gpt3", vocabulary=61, context=32, layers=2, width=24, heads=3, inner=40)
    assert run(["verify", saved(made, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "GPT-3" in error and "no reference to be compared with" in error


def test_a_folder_of_few_bits_is_refused_beside_another(tmp_path: Path) -> None:
    whole = saved(model(), tmp_path / "whole")
    assert run(["quantize", whole, "--out", str(tmp_path / "few")]) == 0
    with pytest.raises(DaybreakError, match="few has weights of few bits"):
        compare_folders(whole, str(tmp_path / "few"))
