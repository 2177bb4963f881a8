"""README's and docs' commands are run, and print what the page says they print.

In a ```console block, a line that starts with `$ ` is a command and the lines after it are its output; a line
`...` stands for any number of lines. Commands that take minutes are listed, with the reason, in slow.py; of
them it is tested that the command and its options exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from daybreak.cli import main
from tests.journeys.slow import NOT_RUN, ONLY_COMPILED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]
    output: str

    @property
    def slow(self) -> bool:
        line = " ".join(self.words)
        return any(f"{line} ".startswith((f"{start} ", f"{start}/")) for start in NOT_RUN)


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands() -> Iterator[Command]:
    for page in PAGES:
        for block in blocks(page, "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, output = part.partition("\n")
                while line.endswith("\\"):
                    more, _, output = output.partition("\n")
                    line = line[:-1] + more
                words = shlex.split(line, comments=True)
                words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
                words[0] = words[0].removeprefix(".venv/bin/")
                yield Command(page.relative_to(ROOT).as_posix(), tuple(words), output.rstrip("\n"))


COMMANDS = list(commands())
FAST = [command for command in COMMANDS if not command.slow]


def name(command: Command) -> str:
    return f"{command.page}: {' '.join(command.words)}"


def test_commands_are_found() -> None:
    assert len(COMMANDS) >= 10
    documented = {command.words[1] for command in COMMANDS if command.words[0] == "daybreak"}
    assert documented >= set(main.COMMANDS), "a command that no page mentions"


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_every_documented_command_exists(command: Command) -> None:
    program, *arguments = command.words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in arguments if "=" not in word]
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program == "daybreak", f"{command.page} names {program}, which these tests do not know"
        group = typer.main.get_command(main.app)
        with group.make_context("daybreak", list(arguments), resilient_parsing=True) as context:
            found = main.Commands.get_command(group, context, arguments[0])  # type: ignore[arg-type]
            if not arguments[0].startswith("-"):
                assert found is not None
                found.make_context(arguments[0], list(arguments[1:]), parent=context)


def printed(command: Command, folder: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daybreak.cli.main", *command.words[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )


@pytest.mark.parametrize("command", FAST, ids=name)
def test_documented_commands_print_what_the_page_says(command: Command, tmp_path: Path) -> None:
    done = printed(command, tmp_path)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^\.\.\.$", command.output, flags=re.MULTILINE)
    pattern = r"(?:.*\n)?".join(re.escape(part.strip("\n")) + r"\n?" for part in parts)
    assert re.fullmatch(pattern, done.stdout.rstrip("\n") + "\n", re.DOTALL), (
        f"{command.page} shows\n{command.output}\nand the command prints\n{done.stdout}"
        "(on purpose? python -m tests.journeys.refresh writes it into the pages)"
    )


def scripts(page: Path) -> Iterator[str]:
    """A block that says `import daybreak` begins a script, those after it continue it."""
    script = ""
    for block in blocks(page, "python"):
        if script and re.search(r"^import daybreak$", block, re.MULTILINE):
            yield script
            script = ""
        script += block
    yield from [script] if script else []


QUOTES = ("CONTRIBUTING.md",)  # parts of a page of the package; tests/unit/test_docs.py compares them
EXAMPLES = [
    (page.relative_to(ROOT).as_posix(), script)
    for page in PAGES
    if page.name not in QUOTES
    for script in scripts(page)
]


@pytest.mark.parametrize(("page", "script"), EXAMPLES)
def test_python_examples_run(page: str, script: str, tmp_path: Path) -> None:
    if any(word in script for word in ONLY_COMPILED):
        compile(script, page, "exec")
        return
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
