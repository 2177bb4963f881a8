"""`daybreak chat`: talk with a model in the terminal, or ask it one thing."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli.conversation import Conversation, note
from daybreak.cli.options import (
    Adapter,
    Bits,
    CacheDtype,
    Defaults,
    Device,
    Draft,
    Dtype,
    Model,
    Revision,
    sampling_options,
)
from daybreak.cli.writing import adapt, engine_of, load
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.chat import Answer

HELP = """/reset          forget the conversation; the system message stays
/system [TEXT]  set the system message for what follows; without a text, none
/retry          another answer to the last message, in the place of the one before
/rate N         what the last answer is worth: + or -, or a number (needs --ratings FILE)
/undo           take back the last message and its answer
/save FILE      write the conversation to a new file, as JSON
/help           these lines
/quit           leave, as Ctrl-D does; Ctrl-C stops an answer
A message that begins with a / is written with two."""


@sampling_options("n", "logprobs", "prompt_logprobs")
def chat(
    model: Model,
    settings: dict[str, Any],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this, print the answer, and leave.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What is said before the conversation begins.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one answer as a JSON object.")] = False,
    defaults: Defaults = True,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    bits: Bits = None,
    cache_dtype: CacheDtype = None,
    draft: Draft = None,
    adapter: Adapter = None,
    ratings: Annotated[
        Path | None,
        typer.Option(help="Add what /rate says of answers to this file, for `daybreak align reward`."),
    ] = None,
) -> None:
    """Talk with a model; its answers appear as they are written.

    Messages are put into the format of the checkpoint's chat template, or else of its family. Most families
    here were never trained to answer: they continue a transcript. With --message, or where standard input is
    not a terminal, one message is answered. An answer has at most 512 tokens where nothing else is said.
    """
    one = message if message is not None else _piped()
    if one is None and as_json:
        raise DaybreakError("--json prints one answer; give --message, or a message on standard input")
    if one is not None and ratings is not None:
        raise DaybreakError(
            "--ratings keeps what /rate says in a conversation, and one message is none; leave one out"
        )
    for text in (one, system):
        _check_text(text)
    loaded = load(model, revision, dtype, device, bits)
    adapt(loaded, adapter)
    engine = engine_of(loaded, cache_dtype, draft=draft, bits=bits)
    conversation = Conversation(loaded, engine, system, defaults, settings, ratings, str(model))
    conversation.introduce()
    if one is None:
        try:
            _converse(conversation)
        finally:
            conversation.leave()
    elif as_json:
        print(json.dumps(_as_json(conversation.ask(one, shown=False)), ensure_ascii=False))
    else:
        conversation.ask(one)


def _piped() -> str | None:
    """What standard input holds where it is no terminal."""
    if sys.stdin.isatty():
        return None
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeError as error:
        raise DaybreakError(f"the message is not UTF-8 text: {error}") from None
    if not text:
        raise DaybreakError("there is no message; give --message, or write one to standard input")
    return text


def _check_text(text: str | None) -> None:
    try:
        (text or "").encode()  # bytes that are no text reach Python as lone surrogates
    except UnicodeError as error:
        raise DaybreakError(f"the message is not UTF-8 text: {error}") from None


def _converse(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and called back; nothing is written to disk)
    note("/help lists what else can be typed; Ctrl-D leaves")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            note("\n/quit or Ctrl-D leaves")
            continue
        try:
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/") and not line.startswith("//"):
                _command(conversation, *line.split(maxsplit=1))
            elif line:
                _check_text(line)
                conversation.ask(line.removeprefix("/") if line.startswith("//") else line)
        except KeyboardInterrupt:
            note("stopped")
        except DaybreakError as error:
            note(f"error: {error}")


def _command(conversation: Conversation, name: str, rest: str = "") -> None:
    if name == "/reset":
        conversation.reset()
    elif name == "/retry":
        conversation.retry()
    elif name == "/rate":
        conversation.rate(rest)
    elif name == "/undo":
        conversation.undo()
    elif name == "/system":
        _check_text(rest)
        conversation.system = rest or None
    elif name == "/save":
        _save(conversation, rest)
    elif name == "/help":
        print(HELP)
    else:
        raise DaybreakError(f"no command {name!r}; /help lists them, and //{name[1:]} is a message")


def _save(conversation: Conversation, name: str) -> None:
    if not name:
        raise DaybreakError("/save needs the name of a file")
    text = json.dumps(conversation.everything(), ensure_ascii=False, indent=2)
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise DaybreakError(f"{name} exists already; name another file") from None
    except OSError as error:
        raise DaybreakError(f"{name} cannot be written: {error.strerror or error}") from None
    note(f"{len(conversation.everything())} messages in {name}")


def _as_json(answer: Answer) -> dict[str, Any]:
    result = answer.result
    return {
        "message": answer.message,
        "finish_reason": result.finish_reason,
        "tokens": result.tokens,
        "prompt_tokens": result.prompt_tokens,
    }
