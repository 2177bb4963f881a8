"""What `make bench` makes of its samples, and the files that it writes for others; nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import daybreak
from benchmarks.inference import gguf_file, page, picture, table
from benchmarks.inference.configurations import ALL, Configuration, known, of_shape
from benchmarks.inference.engines import MODULES
from benchmarks.inference.figures import (
    BATCHES,
    FIRST,
    MEMORY,
    PREFILL,
    Measured,
    Record,
    Report,
    decode,
    leading,
    middle,
)
from benchmarks.inference.process import Failed, Process
from benchmarks.inference.rounds import Drawn, Plan, Rounds, Side
from benchmarks.inference.shapes import shapes

ROOT = Path(__file__).parents[2]


def measured() -> Measured:
    """Two engines that ran and one that did not."""
    ours = Record("daybreak-float32", "daybreak float32", True, read=10**9)
    ours.samples = {FIRST: [0.2, 0.1, 0.4], PREFILL: [1234.5], decode(1): [5.0, 7.0], MEMORY: [2.0**30]}
    ours.same = [8, 8]
    theirs = Record("ctranslate2-float32", "CTranslate2 float32", True, read=10**9)
    theirs.samples, theirs.same = {decode(16): [80.0]}, [8, 3]
    none = Record("llama.cpp-q8_0", "llama.cpp Q8_0", problem="llama.cpp has no OPT")
    return Measured("opt-125m", "OPT-125m", [ours, theirs, none], [64, 32, 8], [9e9, 12e9, 10e9], 3)


def report() -> Report:
    machine = {"date": "2026-01-02", "processor": "a processor", "cores": 2, "versions": {"torch": "2"}}
    return Report(machine, {"threads": 2, "prompt": 128, "together": 32, "prefill": 512}, [measured()])


def test_medians_and_spread() -> None:
    assert middle([3.0, 1.0, 10.0, 2.0]) == (2.5, 1.0, 10.0)
    assert middle([]) is None


def test_share_of_the_roof() -> None:
    """A step of a batch reads the weights once: sixteen texts may be sixteen times as fast."""
    found = measured()
    ours, theirs, none = found.records
    assert found.roof == 10e9
    assert ours.share(1, 10e9) == pytest.approx(6.0 * 1e9 / 10e9)
    assert theirs.share(16, 10e9) == pytest.approx(80.0 / 16 * 1e9 / 10e9)
    assert ours.share(4, 10e9) is None and none.share(1, 10e9) is None


def test_leading_tokens() -> None:
    assert leading([[1, 2, 3], [1, 2, 3], [9, 2, 3]], [[1, 2, 3], [1, 2, 4], [1, 2, 3]]) == [3, 2, 0]


def test_the_table_has_every_figure_and_reason() -> None:
    text = table.report(report())
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    cells = [cell.strip() for cell in rows["daybreak float32"].strip("|").split("|")]
    assert cells[1:5] == ["200 (100–400)", "1,234", "6.00 (5.00–7.00) 60 %", table.MISSING]
    assert cells[6] == "1,024"
    assert "| 80.0 50 % |" in rows["CTranslate2 float32"]
    assert "llama.cpp Q8_0" not in rows and "- llama.cpp Q8_0: llama.cpp has no OPT." in text
    assert "Memory is read at 10.0 (9.00–12.0) GB/s" in text and "2 threads for everyone" in text
    assert "the same 8 greedy tokens as daybreak float32 in 1 of 2 texts, in the others the first 3" in text


def test_a_shape_that_failed_as_a_whole_is_told() -> None:
    lost = Measured("gpt2", "GPT-2 small", [], problem="the disk is full")
    assert table.shape(lost) == "### GPT-2 small\n\nNothing was measured: the disk is full."


def test_a_shape_that_ended_early_keeps_its_figures() -> None:
    cut = measured()
    cut.problem = "OSError: no space"
    assert "- It ended early: OSError: no space." in table.shape(cut)
    assert "| 80.0 50 % |" in table.shape(cut)


def test_the_report_comes_back_from_json() -> None:
    told = report()
    assert Report.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_only_what_stands_between_the_markers_changes() -> None:
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    once = page.replaced(text, "\nnew | line\n")
    assert once == f"before\n{page.BEGIN}\nnew | line\n{page.END}\nafter\n"
    assert page.replaced(once, "new | line") == once


@pytest.mark.parametrize(
    "text", ["", page.BEGIN, page.END + page.BEGIN, 2 * (page.BEGIN + page.END)], ids=repr
)
def test_a_page_without_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        page.replaced(text, "new")


def test_the_page_has_the_markers() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.replaced(text, "new") != text


def test_the_picture_is_the_same_file_for_the_same_figures(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        picture.draw(report(), tmp_path / name)
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert b"CTranslate2 float32" in drawn and b"llama.cpp Q8_0" not in drawn


def test_who_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.inference.configurations.multiplies_bfloat16", lambda: False)
    found = {name: [one.key for one in of_shape(shape)] for name, shape in shapes().items()}
    assert all("bfloat16" not in key for keys in found.values() for key in keys)
    assert "llama.cpp-q4_0" in found["gpt2"] and "llama.cpp-q4_1" not in found["gpt2"]
    assert [key for key in found["smollm2"] if key.startswith("llama")] == ["llama.cpp-q4_1"]
    some = of_shape(shapes()["gpt2"], ["ctranslate2", "daybreak-8bit"])
    assert [one.key for one in some] == ["daybreak-8bit", "ctranslate2-float32", "ctranslate2-int8"]
    assert known("llama.cpp") and known("LLAMA.CPP-q8_0") and not known("llama")
    assert {one.engine for one in ALL} == {*MODULES}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bloom"])
def test_gguf_files_hold_the_same_model(family: str, tmp_path: Path) -> None:
    """Read back by the package, with every parameter redrawn, so that no layout is wrong unnoticed."""
    model = daybreak.create(family, layers=2, width=64, heads=4, inner=256, vocabulary=96, context=64)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save(tmp_path / "plain")
    gguf_file.write(tmp_path / "plain", tmp_path / "whole.gguf", "F32")
    gguf_file.write(tmp_path / "plain", tmp_path / "short.gguf", "Q4_0")
    tokens = torch.tensor([[1, 2, 3, 61, 63, 5, 6]])
    read = daybreak.load(tmp_path / "whole.gguf")
    torch.testing.assert_close(read.logits(tokens), model.logits(tokens), rtol=1e-5, atol=1e-5)
    assert gguf_file.bytes_read(tmp_path / "whole.gguf") > 5 * gguf_file.bytes_read(tmp_path / "short.gguf")


DYING = """
import sys
for _ in range(2):
    input()
    print('{"seconds": 1.0, "memory": 1, "tokens": [[1]]}', flush=True)
sys.exit(print("last words", file=sys.stderr) or 3)
"""
"""Answers to loading and the first token, then ends."""


def test_who_is_only_compared_is_sent_home() -> None:
    record = Record("llama.cpp-f32", "llama.cpp F32", True, timed=False)
    once = Scripted(1, 1)
    rounds = Rounds([Side(record, once)], Plan(threads=1, new=(4, 3, 2)), Drawn(1000))  # type: ignore[arg-type]
    rounds.compare()
    rounds.one()
    assert (record.same, record.samples, once.closed, len(once.seen)) == ([2] * 16, {}, True, 1)
    assert [one.timed for one in of_shape(shapes()["gpt2"], ["llama.cpp"])] == [False, True, True]
    assert all(one.timed for one in of_shape(shapes()["gpt2"], ["llama.cpp-f32"]))


class Scripted:
    """A process that takes the time that is written down, and may fail."""

    def __init__(self, per_prompt: float, per_token: float, fails: bool = False) -> None:
        self.per_prompt, self.per_token, self.fails = per_prompt, per_token, fails
        self.seen: list[list[list[int]]] = []
        self.closed = False

    def ask(self, prompts: list[list[int]], new: int) -> dict[str, object]:
        if self.fails:
            raise Failed("out of order")
        self.seen.append(prompts)
        seconds = len(prompts) * self.per_prompt + self.per_token * (new - 1)
        return {"seconds": seconds, "tokens": [[1] * new for _ in prompts]}

    def close(self) -> None:
        self.closed = True


def test_a_round_takes_the_prompt_off_and_survives_who_fails() -> None:
    quick, broken = Scripted(0.125, 0.25), Scripted(1, 1, fails=True)
    records = [Record("daybreak-float32", "daybreak", True), Record("transformers-float32", "other", True)]
    sides = [Side(record, one) for record, one in zip(records, (quick, broken), strict=True)]  # type: ignore[arg-type]
    plan = Plan(threads=1, prompt=5, together=3, prefill=8, new=(4, 3, 2))
    rounds = Rounds(sides, plan, Drawn(1000))
    rounds.compare()
    assert records[0].same == [2] * 16 and records[1].same is None
    rounds.one()
    assert records[0].samples[FIRST] == [0.125] and records[0].samples[PREFILL] == [64.0]
    for batch in BATCHES:
        assert records[0].samples[decode(batch)] == [pytest.approx(batch / 0.25)]
    assert (records[1].problem, records[1].samples, broken.closed) == ("out of order", {}, True)
    flat = [tuple(text) for call in quick.seen for text in call]
    assert len({*flat}) == len(flat)  # nothing is asked twice


def test_a_call_that_writes_in_no_time_was_disturbed() -> None:
    """The prompt's time, which is taken off, was another's."""
    record = Record("daybreak-float32", "daybreak", True)
    rounds = Rounds([Side(record, Scripted(1, 0.01))], Plan(threads=1, new=(4, 3, 2)), Drawn(1000))  # type: ignore[arg-type]
    rounds.one()
    assert not {decode(batch) for batch in BATCHES} & record.samples.keys()


def test_an_engine_whose_process_dies_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it dies: before the first answer, and between two requests."""
    monkeypatch.setattr(Process, "command", lambda *_: [sys.executable, "-c", DYING])
    process = Process(Configuration("absent", "float32", 4), "nowhere", [1], 1)
    for _ in range(3):
        with pytest.raises(Failed, match="ended with 3: last words"):
            process.ask(prompts=[[1] * 100_000], new=1)
    process.close()


def test_an_engine_that_cannot_start_is_a_reason() -> None:
    """The worker answers, and its process is ended."""
    with pytest.raises(Failed, match="absent"):
        Process(Configuration("absent", "float32", 4), "nowhere", [1], 1)


def test_help_names_every_option() -> None:
    command = [sys.executable, "-m", "benchmarks.inference", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert all(option in told for option in ("--json", "--quick", "--shapes", "--engines", "--write"))
