"""The `daybreak` command: a module is imported when its command is called, and torch not before."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

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
    "quantize": "write a checkpoint with weights of 8 or 4 bits, and what that costs",
    "generate": "continue a prompt",
    "chat": "talk with a model, in the format that it asks for",
    "infill": "fill the blanks of a text",
    "quickstart": "train, score and sample a small model on this machine's own text",
    "data": "from text to token shards: build them, look at them, published mixtures, what a step read",
    "tokenizer": "train tokenizers, and compare them",
    "pretrain": "train a model of any family on token shards, from scratch or from a checkpoint",
    "finetune": "teach a model to classify, to compare texts or to choose among them",
    "classify": "label texts with a fine-tuned model",
    "align": "teach a model what people want: demonstrations, rewards, preferences",
    "ulmfit": "the LSTM before the transformers: pretrain it, tune it to texts, classify with it",
    "runs": "training runs: a list, or one run's curves",
    "doctor": "what a training run needs, and whether this machine has it",
}
"""Every command with its line in `--help`; its function stands in the module of that name in this folder."""

GROUPS: dict[str, dict[str, str]] = {
    "data": {
        "build": "turn a recipe's texts into token shards",
        "stats": "tokens by source, language and length; duplicates; bytes per token",
        "mix": "a published mixture as a recipe to fill in",
        "replay": "the documents that a run read at a step",
    },
    "align": {
        "sft": "learn answers from demonstrations",
        "reward": "learn from rankings what answers are worth",
        "ppo": "learn from a reward model's judgement of own answers: PPO, PPO-ptx",
        "dpo": "learn from pairs of answers directly: DPO, IPO, KTO",
        "demo": "all of it in one go, with a program for a labeller",
        "best-of": "write several answers to each prompt and keep the best",
        "compare": "models beside their reference: win rate, and the divergence it cost",
    },
    "tokenizer": {
        "train": "learn a tokenizer from texts",
        "compare": "bytes per token and speed of several, side by side",
    },
    "ulmfit": {
        "pretrain": "learn a language model from scratch",
        "finetune": "go on with the text of a task",
        "classify": "train a classifier on a language model, layer by layer",
        "evaluate": "perplexity of a language model, accuracy of classifiers",
        "predict": "the class of each text",
    },
}
"""Commands that are groups of commands; theirs stand in the folder of the group's name."""

WRONG_INPUT = 2
OUR_MISTAKE = 70
"""Neither wrong input nor an answer: 1 is `verify`'s for models that differ."""
INTERRUPTED = 130


class Commands(typer.core.TyperGroup):
    """A table of commands as a command group."""

    table: ClassVar[dict[str, str]] = COMMANDS
    room: ClassVar[str] = "daybreak.cli"

    def list_commands(self, ctx: Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        return _load(cmd_name, self.room) if cmd_name in self.table else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        if args[0] not in self.table and not args[0].startswith("-"):
            hint = nearest(args[0], self.table)
            raise DaybreakError(f"no command {args[0]!r}{hint}; there are {', '.join(self.table)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))


PLAIN: Any = {"add_completion": False, "rich_markup_mode": None}
HELP = {"help_option_names": ["-h", "--help"]}
FREE = {"allow_extra_args": True, "ignore_unknown_options": True}


def _load(name: str, room: str) -> Command:
    if room == Commands.room and name in GROUPS:
        return _group(name)
    word = name.replace("-", "_")
    module = importlib.import_module(f"{room}.{word}")
    single = typer.Typer(**PLAIN)
    # A command that takes settings by their dotted names gets the words that are no options of its own.
    free = FREE if hasattr(module, "FREE_WORDS") else {}
    single.command(name, context_settings={**HELP, **free})(getattr(module, word))
    return typer.main.get_command(single)


def _group(name: str) -> Command:
    table = {"table": GROUPS[name], "room": f"{Commands.room}.{name}"}
    group = typer.Typer(cls=type(name, (Commands,), table), no_args_is_help=True, **PLAIN)
    group.callback(help=COMMANDS[name].capitalize() + ".", context_settings=HELP)(lambda: None)
    return typer.main.get_command(group)


app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    context_settings=HELP,
    **PLAIN,
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
    # Ended by SIGTERM, a command still takes its unfinished files away; training runs have ways of their own.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        status = run()
    except Exception:
        traceback.print_exc()
        print("this is a mistake in daybreak; please report it with the lines above", file=sys.stderr)
        status = OUR_MISTAKE
    sys.exit(status)


if __name__ == "__main__":
    main()
