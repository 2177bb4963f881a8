"""The command line as people meet it: quick, plain, and with one line for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daybreak import __version__
from daybreak.cli import main, plain
from daybreak.errors import DaybreakError

HEAVY = [
    "torch",
    "transformers",
    "matplotlib",
    "huggingface_hub",
    "tokenizers",
    "numpy",
    "rich",
    "safetensors",
]


def daybreak(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "daybreak.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize(
    "code",
    [
        "import daybreak",
        "import daybreak.cli.main",
        *(f"import daybreak.cli.{name}" for name in main.COMMANDS),
        "from daybreak.cli.main import run; run(['--help'])",
        "from daybreak.cli.main import run; run(['families'])",
        "from daybreak.cli.main import run; run(['describe', 'bloom-7b1'])",
        "from daybreak.cli.main import run; run(['diff', 'gpt2', 'bloom'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_help_answers_at_once() -> None:
    """Under 0.3 s by hand (0.08 s where this was written); the bound leaves room for a busy machine."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert daybreak("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_every_command_is_listed_and_has_help() -> None:
    listed = daybreak("--help").stdout
    for name in main.COMMANDS:
        assert f"\n  {name} " in listed
        done = daybreak(name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: daybreak {name} ")


def test_alone_it_shows_the_help_and_the_version_is_there() -> None:
    assert daybreak().stdout == daybreak("--help").stdout
    assert daybreak("--version").stdout == f"daybreak {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["descibe", "gpt2"], "no command 'descibe' (did you mean 'describe'?); there are families"),
        (["describe", "bloom-7b2"], "no model, family or folder 'bloom-7b2' (did you mean 'bloom-7b1'?)"),
        (["describe"], "Missing argument 'name'"),
        (["diff", "gpt2", "bloom", "--jsn"], "No such option: --jsn"),
        (["--verbose"], "No such option: --verbose"),
        (["families", "gpt2"], "unexpected extra argument"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    done = daybreak(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_message_of_several_lines_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> dict[str, object]:
        raise DaybreakError(f"{name} is\n  wrong")

    monkeypatch.setattr("daybreak.compare.describe.describe", fail)
    assert main.run(["describe", "gpt2"]) == 2
    assert capsys.readouterr().err == "error: gpt2 is wrong\n"


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> dict[str, object]:
        raise KeyError(name)

    monkeypatch.setattr("daybreak.compare.describe.describe", fail)
    with pytest.raises(KeyError):
        main.run(["describe", "gpt2"])


def test_our_own_mistakes_have_a_status_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> dict[str, object]:
        raise KeyError(name)

    monkeypatch.setattr("daybreak.compare.describe.describe", fail)
    monkeypatch.setattr(sys, "argv", ["daybreak", "describe", "gpt2"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == main.OUR_MISTAKE == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "KeyError: 'gpt2'",
        "this is a mistake in daybreak; please report it with the lines above",
    ]


def test_an_interruption_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr("daybreak.compare.describe.describe", interrupt)
    assert main.run(["describe", "gpt2"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == ""


ENDED = """
import os, signal, sys, tempfile
from daybreak.cli import main
def run():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")
main.run = run
main.main()
"""


def test_what_sigterm_ends_leaves_no_unfinished_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_reading_is_no_error(unbuffered: str) -> None:
    command = f"{sys.executable} -m daybreak.cli.main describe gpt2 --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=60,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["families"], {"name", "title", "year", "story", "paper", "sizes"}),
        (
            ["describe", "pythia-70m"],
            {
                "name",
                "kind",
                "family",
                "decisions",
                "architecture",
                "special_tokens",
                "starts_with_bos",
                "hub",
            }
            | {"note", "parameters", "weight_bytes", "cache_bytes_per_1000_tokens"},
        ),
        (["diff", "gpt", "gpt2"], {"first", "second", "changes"}),
    ],
)
def test_json_is_json_with_stable_keys(arguments: list[str], keys: set[str]) -> None:
    told = json.loads(daybreak(*arguments, "--json").stdout)
    assert set(told[0] if isinstance(told, list) else told) == keys


@pytest.mark.parametrize("arguments", [["families"], ["describe", "opt-350m"], ["diff", "gpt2", "gpt_neox"]])
def test_text_is_plain_and_the_same_at_every_width(arguments: list[str]) -> None:
    texts = {daybreak(*arguments, COLUMNS=width, FORCE_COLOR="1").stdout for width in ("40", "80", "300")}
    assert len(texts) == 1
    text = texts.pop()
    assert "\x1b" not in text
    assert not set(text) & set("│─┃━┏┓╭╮")
    lines = text.splitlines()
    assert max(map(len, lines)) <= plain.LINE
    assert all(line == line.rstrip() for line in lines)


def test_the_output_says_what_matters(tmp_path: Path) -> None:
    text = daybreak("describe", "bloom-7b1").stdout
    for part in (
        "7,069,016,064",
        "13.2 GiB",
        "bigscience/bloom-7b1",
        "arXiv 2211.05100",
        "bos 1, eos 2, pad 3",
    ):
        assert part in text
    assert "gpt3-175b" in daybreak("describe", "gpt3").stdout
    assert daybreak("diff", "bloom-3b", "bloomz-3b").stdout.endswith("no field of the architecture differs\n")


@pytest.mark.parametrize(
    ("number", "spoken"),
    [
        (999, "999"),
        (70_426_624, "70.4M"),
        (124_439_808, "124M"),
        (1_414_647_808, "1.41B"),
        (174_604_259_328, "175B"),
        *((999_600_000, "1.00B"), (99_960_000, "100M"), (9_996_000, "10.0M")),
    ],
)
def test_counts_have_three_digits(number: int, spoken: str) -> None:
    assert plain.count(number) == spoken


@pytest.mark.parametrize(
    ("number", "spoken"),
    [
        *((0, "0 B"), (999, "999 B"), (1024, "1 KiB"), (248_879_616, "237 MiB")),
        *((14_138_032_128, "13.2 GiB"), (1000 * 1024**2, "0.977 GiB")),
    ],
)
def test_sizes_are_in_powers_of_1024(number: int, spoken: str) -> None:
    assert plain.size(number) == spoken
