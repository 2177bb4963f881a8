"""The `daybreak` command: a module is imported when its command is called, and torch not before."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import typer.main

from daybreak import __version__
from daybreak.errors import DaybreakError, nearest

if TYPE_CHECKING:  # typer carries its own copy of click, whose names are not public
    from typer._click import Command, Context, HelpFormatter

COMMANDS = {
    "families": "the families and the sizes they were published in",
    "describe": "one model: its decisions, parameters, memory, paper and repository",
    "diff": "what changed between two models or families, in words",
    "verify": "compare with the reference implementation, or two folders with each other",
    "convert": "write any checkpoint that can be read as an ordinary folder",
    "generate": "continue a prompt",
    "chat": "talk with a model, in the format that it asks for",
    "infill": "fill the blanks of a text",
    "quickstart": "train, score and sample a small model on this machine's own text",
}
"""Every command with its line in `--help`; its function stands in the module of that name in this folder."""

WRONG_INPUT = 2
OUR_MISTAKE = 70
"""Neither wrong input nor an answer: 1 is `verify`'s for models that differ."""
INTERRUPTED = 130


class Commands(typer.core.TyperGroup):
    """The table above as a command group."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = nearest(args[0], COMMANDS)
            raise DaybreakError(f"no command {args[0]!r}{hint}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _load(name: str) -> Command:
    module = importlib.import_module(f"daybreak.cli.{name}")
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(getattr(module, name))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Load, run, train and compare the language models that opened the field."""
    if version:
        print(f"daybreak {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the status that the process should exit with."""
    try:
        result: Any = typer.main.get_command(app).main(arguments, prog_name="daybreak", standalone_mode=False)
        sys.stdout.flush()
    except (DaybreakError, typer.TyperException) as error:
        print("error:", " ".join(_text(error).split()), file=sys.stderr)
        return WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has stopped reading, as `head` does
        _silence()
        return 0
    except OSError as error:  # a full disk, a file that may not be read
        print(f"error: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        _silence()
        return WRONG_INPUT
    return result if isinstance(result, int) else 0


def _silence() -> None:
    """What is still to be written to stdout goes nowhere, so that Python's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text(error: Exception) -> str:
    return error.format_message() if isinstance(error, typer.TyperException) else str(error)


def main() -> None:
    """The entry point of the installed command: `run`, and a status for exceptions that nobody expected."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our signs shows others instead
    try:
        status = run()
    except Exception:
        traceback.print_exc()
        print("this is a mistake in daybreak; please report it with the lines above", file=sys.stderr)
        status = OUR_MISTAKE
    sys.exit(status)


if __name__ == "__main__":
    main()
