"""`daybreak data replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain

if TYPE_CHECKING:
    from daybreak.data.loader import Read
    from daybreak.train.replay import Replay

HEAD = ("sequence", "source", "epoch", "tokens", "language", "document")


def replay(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    step: Annotated[int, typer.Option(help="Which step, from 1.")],
    text: Annotated[
        int | None, typer.Option(help="Print the text of this sequence, one of those that the step read.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the run's data is now, if it was moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List the documents that a run read at a step."""
    from daybreak.train.replay import replay as logic

    found = logic(run, step, data)
    written = None if text is None else found.text(text)
    if as_json:
        plain.print_json(_tree(found) | ({} if text is None else {"text": {"sequence": text, "is": written}}))
    elif written is not None:
        print(written)
    else:
        _print(found)


def _print(found: Replay) -> None:
    numbers, documents = found.sequences, {read.document for read in found.documents}
    event = f", {found.event}" if found.event else ""
    print(f"step {found.step}: sequences {numbers[0]} to {numbers[-1]}, {len(documents)} documents{event}\n")
    print(plain.columns([HEAD, *map(_row, found.documents)], right=frozenset({0, 2, 3})))


def _row(read: Read) -> tuple[str, ...]:
    document = read.document
    place = f"{document.file}:{document.place}"
    named = place if document.id == place else f"{place} {document.id}"
    numbers = (str(read.epoch), str(read.tokens))
    return (str(read.sequence), read.source, *numbers, document.language or "", named)


def _tree(found: Replay) -> dict[str, Any]:
    documents = [
        {
            "sequence": read.sequence,
            "source": read.source,
            "epoch": read.epoch,
            "file": read.document.file,
            "place": read.document.place,
            "id": read.document.id,
            "language": read.document.language,
            "tokens": read.tokens,
        }
        for read in found.documents
    ]
    return {
        "step": found.step,
        "sequences": {"first": found.sequences[0], "last": found.sequences[-1]},
        "event": found.event,
        "documents": documents,
    }
