"""The logbook tells what happened and survives being cut off; run.json tells how a session ended."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak.errors import DaybreakError
from daybreak.settings import changed, to_yaml
from daybreak.train import logbook, run_status
from daybreak.train.logbook import CUT_OFF, FILE, NAMED, Logbook, duration, fenced
from daybreak.train.machine import machine
from daybreak.train.run_status import RunFile, RunStatus
from daybreak.train.settings import Settings
from daybreak.train.stop import ending_by
from daybreak.train.watch import Event

SPIKE = Event("loss spike", 1234, 6.0, 3.0, "the loss is 6, 2 times its usual 3")


@dataclass(frozen=True)
class Document:
    file: str
    place: int
    id: str


@dataclass(frozen=True)
class Part:
    sequence: int
    source: str
    epoch: int
    document: Document
    tokens: int


def parts(count: int, source: str = "wiki") -> list[Part]:
    return [
        Part(100 + n // 2, source, 0, Document(f"{source}.jsonl", n + 1, f"id-{n}"), 64) for n in range(count)
    ]


def text(folder: Path) -> str:
    return (folder / FILE).read_text(encoding="utf-8")


def begin(book: Logbook, **given: object) -> None:
    usual = {"session": 1, "step": 0, "settings": to_yaml(Settings()), "about": {"model": "tiny"}}
    book.start(**{**usual, **given})  # type: ignore[arg-type]


def status(**changes: object) -> RunStatus:
    usual = RunStatus(
        id="cafe",
        session=1,
        status="running",
        reason=None,
        pid=1,
        process="boot/1",
        host="elsewhere",
        started="2026-01-01 00:00:00",
        updated="2026-01-01 00:10:00",
        step=1234,
        steps=2000,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_the_first_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/daybreak", "pretrain", "my settings.yaml"])
    begin(Logbook(tmp_path), about={"model": "a tiny one", **machine()})
    found = text(tmp_path)
    assert found.startswith(f"# Logbook of {tmp_path.name}\n\n## Session 1: 20")
    assert "- command: `daybreak pretrain 'my settings.yaml'`\n- model: a tiny one\n- host: " in found
    assert "GiB\n" in found and "PyTorch" in found and "daybreak " in found
    assert "\n> ```yaml\n" in found and "\n> watch:\n" in found and "\n>   policy: log\n" in found


def test_a_restart_says_why_and_what_is_different(tmp_path: Path) -> None:
    before, now = Settings(), Settings(length="2000 steps", seed=7)
    book = Logbook(tmp_path)
    begin(book)
    ended = status(status="failed", reason="no space left on the device")
    begin(book, session=2, step=1200, before=ended, changes=changed(before, now))
    second = text(tmp_path).partition("## Session 2: ")[2]
    assert "Session 1 failed at step 1,234: no space left on the device. This one goes on from" in second
    assert "from the checkpoint of step 1,200." in second
    assert "Changed in the configuration:\n- `length`: 1000 steps → 2000 steps\n- `seed`: 0 → 7\n\n" in second
    assert "yaml" not in second
    begin(book, session=3, step=0)
    third = text(tmp_path).partition("## Session 3: ")[2]
    assert "How the session before ended is not known. This one begins anew, at step 0." in third
    assert "The configuration is as before." in third


def test_a_spike_names_the_documents(tmp_path: Path) -> None:
    long = Part(110, "code", 2, Document("a`b\nc.txt", 7, "a`b\nc.txt:7"), 30)
    Logbook(tmp_path).event(
        SPIKE,
        "skip",
        [*parts(2), long, replace(long, sequence=111, tokens=12), replace(long, epoch=3, tokens=1)],
    )
    assert text(tmp_path).startswith("### Step 1,234: loss spike\n\n")
    assert "The loss is 6, 2 times its usual 3. The step was not taken: weights and optimizer" in text(
        tmp_path
    )
    assert text(tmp_path).endswith(
        "It had read 4 documents in sequences 100 to 111:\n"
        "- wiki: `wiki.jsonl`, place 1, id `id-0`, epoch 0: 64 tokens\n"
        "- wiki: `wiki.jsonl`, place 2, id `id-1`, epoch 0: 64 tokens\n"
        "- code: `a'b c.txt`, place 7, epoch 2: 42 tokens\n"
        "- code: `a'b c.txt`, place 7, epoch 3: 1 token\n\n"
    )


def test_many_documents_are_counted(tmp_path: Path) -> None:
    Logbook(tmp_path).event(SPIKE, "go", [*parts(NAMED + 3), *parts(5, "code")])
    assert text(tmp_path).count("- wiki: ") == NAMED
    assert f"- and 3 of wiki, 5 of code: `daybreak data replay {tmp_path} --step 1234`\n" in text(tmp_path)


def test_a_plateau_of_spikes_names_fewer(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    for step in range(1, 7):
        book.event(replace(SPIKE, step=step), "go", parts(8))
    book.event(replace(SPIKE, step=50), "go", parts(8))
    entries = text(tmp_path).split("### Step ")[1:]
    assert [entry.count("- wiki: ") for entry in entries] == [8, 8, 8, 3, 3, 3, 8]


def test_what_else_is_told(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.rolled_back(1234, 1100, 8800, 9879, 0.7)
    book.evaluation(1200, {"all": {"loss": 2.5, "bits_per_byte": 1.25}, "a|b": {"loss": 3.0}})
    book.samples(1200, [("Es `war`", "ein\n\nKönig\x1b[31m ```` x\n")])
    book.progress(1200, 2000, 2.51234, 9_830_400, 12345.6)
    book.note("checkpoints/step-00001200 is\ndamaged")
    book.end("stopped", 1234, 3725, "SIGTERM")
    found = text(tmp_path)
    assert (
        "back from step 1,234 to the checkpoint of step 1,100. Sequences 8,800 to 9,879 are not read" in found
    )
    head, rows = (
        " | loss | bits per byte |\n| --- | ---: | ---: |\n",
        "| all | 2.5000 | 1.2500 |\n| a\\|b | 3.0000 |  |\n\n",
    )
    assert head + rows in found
    assert "of `Es 'war'`:\n> `````text\n> ein\n> \n> König\ufffd[31m ```` x\n> `````\n\n" in found
    assert ": step 1,200 of 2,000, loss 2.512, 9,830,400 tokens read, 12,346 tokens/s.\n\n" in found
    assert ": checkpoints/step-00001200 is damaged\n\n" in found
    assert ": stopped at step 1,234, after 1 h 2 min (SIGTERM).\n\n" in found


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    book = Logbook(tmp_path, active=False)
    begin(book)
    book.note("x")
    book.end("finished", 1, 1.0)
    RunFile(tmp_path, {}, 10, active=False).end("finished")
    assert list(tmp_path.iterdir()) == []


def test_each_entry_is_on_the_disk_before_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    book = Logbook(tmp_path)
    book.note("one")
    first = len((tmp_path / FILE).read_bytes())
    book.note("two")
    assert sizes == [first, len((tmp_path / FILE).read_bytes())]


@pytest.mark.parametrize("kind", ["samples", "event", "evaluation"])
def test_cut_off_at_any_byte(kind: str, tmp_path: Path) -> None:
    """What was there stays, half a letter aside; the last entry is closed, and only if it was cut off."""
    book = Logbook(tmp_path)
    book.note("erster Eintrag → ✓")
    before = len((tmp_path / FILE).read_bytes())
    {
        "samples": lambda: book.samples(3, [("König", "``` ein\nKönig → ✓\n```")]),
        "event": lambda: book.event(SPIKE, "skip", parts(3)),
        "evaluation": lambda: book.evaluation(7, {"all": {"loss": 1.0}}),
    }[kind]()
    whole = (tmp_path / FILE).read_bytes()
    for at in range(before, len(whole) + 1):
        (tmp_path / FILE).write_bytes(whole[:at])
        Logbook(tmp_path).note("weiter")
        found = text(tmp_path)
        kept = whole[:at].decode(errors="ignore")
        assert found.startswith(kept)
        added, _, last = found[len(kept) :].removesuffix("\n\n").rpartition("\n\n")
        assert last.endswith(": weiter") or found[len(kept) :].endswith(": weiter\n\n")
        complete = kept.endswith("\n\n") and len(kept.encode()) == at
        assert found.count(CUT_OFF) == (0 if complete else 1)
        if not complete:
            assert added.endswith(CUT_OFF)
        fences = [line for line in found.splitlines() if re.fullmatch("> ````[a-z]*", line)]
        assert len(fences) % 2 == 0, "a block that never ends would swallow the rest"


def test_a_killed_writer_leaves_a_readable_book(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from daybreak.train.logbook import Logbook\n"
        "book = Logbook(Path(sys.argv[1]))\nwhile True: book.note('ä' * 5000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while not (tmp_path / FILE).exists() or (tmp_path / FILE).stat().st_size < 100_000:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    Logbook(tmp_path).note("weiter")
    entries = text(tmp_path).split("\n\n")
    assert entries[-2].endswith(": weiter") and entries[-1] == ""
    assert all(entry.endswith("ä" * 5000) for entry in entries[:-3])


def test_a_full_disk_leaves_no_half_of_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Logbook(tmp_path)
    book.note("one")
    before, real = text(tmp_path), os.write

    def write(handle: int, data: bytes) -> int:
        if len(data) <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:10])

    monkeypatch.setattr(logbook.os, "write", write)
    with pytest.raises(OSError, match="No space"):
        book.note("a longer one")
    book.end("failed", 1, 1.0, "the disk is full")  # says nothing more
    assert text(tmp_path) == before


@given(st.text())
def test_any_sample_is_one_block(sample: str) -> None:
    lines = fenced(sample, "text").split("\n")
    assert all(line.startswith("> ") for line in lines)
    assert lines[0][:-4] == lines[-1] and lines[-1] not in lines[1:-1]


def test_durations() -> None:
    assert [duration(s) for s in (7.12, 125, 3725, 200_000)] == ["7.1 s", "2 min 5 s", "1 h 2 min", "2 d 7 h"]


def test_sessions_follow_each_other(tmp_path: Path) -> None:
    first = RunFile(tmp_path, {"family": "tiny"}, 100)
    assert first.before is None and first.status.session == 1
    first.at(40)
    first.end("stopped", "SIGTERM")
    second = RunFile(tmp_path, {"family": "tiny"}, 200, step=40)
    assert (
        second.before == first.status
        and second.before.ended() == "session 1 was stopped at step 40 (SIGTERM)"
    )
    assert (second.status.session, second.status.id, second.status.step) == (2, first.status.id, 40)
    found = RunStatus.read(tmp_path)
    assert found is not None and found.now == "running" and found.alive and found.about == {"family": "tiny"}


def test_a_run_that_is_trained_by_another_is_refused(tmp_path: Path) -> None:
    RunFile(tmp_path, {}, 100)
    with pytest.raises(DaybreakError, match=f"is being trained by process {os.getpid()} since"):
        RunFile(tmp_path, {}, 100)


def test_a_killed_session_is_noticed_even_where_its_number_is_taken_again(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from daybreak.train.run_status import RunFile\n"
        "run = RunFile(Path(sys.argv[1]), {}, 100, step=7); print('on', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "on\n"
    running = RunStatus.read(tmp_path)
    assert running is not None and running.now == "running" and running.pid == child.pid
    child.kill()
    deadline = time.monotonic() + 10
    while (
        running.alive and time.monotonic() < deadline
    ):  # a zombie until we wait for it, and dead all the same
        time.sleep(0.01)
    assert running.now == "killed" and "killed without a word (by SIGKILL" in running.ended()
    child.communicate()
    assert replace(running, pid=os.getpid()).now == "killed", "this process is another one"
    rebooted = replace(running, process="before/1")
    assert "the machine was restarted" in rebooted.ended()
    assert RunFile(tmp_path, {}, 100, step=7).before == running


def test_a_process_elsewhere_cannot_be_looked_at() -> None:
    found = status()
    assert found.alive is None and found.now == "running"
    assert found.ended() == "session 1 has told no end; it ran on elsewhere, last heard of at step 1,234"
    assert status(status="finished").ended() == "session 1 finished at step 1,234"


def test_the_step_is_noted_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(run_status.time, "monotonic", lambda: clock[0])
    run = RunFile(tmp_path, {}, 100)

    def noted() -> int:
        return int(json.loads((tmp_path / run_status.FILE).read_text())["step"])

    run.at(1)
    assert noted() == 0
    clock[0] = run_status.SECONDS
    run.at(2)
    assert noted() == 2
    run.at(3)
    assert noted() == 2 and run.seconds == run_status.SECONDS
    run.end("finished")
    assert noted() == 3


def test_run_json_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFile(tmp_path, {}, 100)
    before = (tmp_path / run_status.FILE).read_bytes()

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    run.end("failed", "the disk is full")
    assert (tmp_path / run_status.FILE).read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"id": 1}'])
def test_a_damaged_run_json_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / run_status.FILE).write_text(content)
    assert RunStatus.read(tmp_path) is None
    assert RunFile(tmp_path, {}, 10).status.session == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), ("stopped", "Ctrl-C, twice")),
        (SystemExit(143), ("stopped", "SIGTERM, twice")),
        (DaybreakError("no room"), ("failed", "no room")),
        (ValueError("7"), ("failed", "ValueError: 7")),
    ],
)
def test_how_a_run_ended_by_what_came_out_of_it(error: BaseException, told: tuple[str, str]) -> None:
    assert ending_by(error) == told
