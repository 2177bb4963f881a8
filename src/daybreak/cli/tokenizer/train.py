"""`daybreak tokenizer train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from daybreak import families
from daybreak.cli import plain


def train(
    paths: Annotated[
        list[str], typer.Argument(help="Files, folders and globs: txt, md, jsonl, parquet, also gz and zst.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; new or empty.")],
    like: Annotated[
        str, typer.Option(help="Learn as this family did: gpt, gpt2, gpt_neox, opt, bloom, glm and others.")
    ] = families.FIRST_TO_TRAIN,
    vocabulary: Annotated[
        int | None, typer.Option(help="All ids, special tokens among them; by default the family's.")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option("--special", help="A further special token; may be repeated.")
    ] = None,
    key: Annotated[str, typer.Option(help="Where JSON and parquet have the text.")] = "text",
    kind: Annotated[
        str, typer.Option(help="text, jsonl or parquet, whatever the files' endings; auto: by these.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Learn a tokenizer from texts, as one of the families has it, and write a folder that daybreak and
    transformers read. Texts are read once, one after another, and need not fit into memory.
    """
    from daybreak.cli.live import Live
    from daybreak.data.learn_tokenizer import learn_tokenizer
    from daybreak.data.texts import Texts

    with Live() as live:
        live.phase("reading")
        texts = Texts(paths, key, kind, progress=live.progress, at_end=lambda: live.phase("learning"))
        learned = learn_tokenizer(texts, like, out, vocabulary, special or ())
    for problem in learned.problems:
        print(f"left out: {problem}", file=sys.stderr)
    tokenizer = learned.tokenizer
    if as_json:
        plain.print_json(
            {
                "folder": str(learned.folder),
                "like": learned.family,
                "vocabulary": tokenizer.vocabulary,
                "special": dict(tokenizer.specials),
                "files": learned.files,
                "bytes": learned.bytes,
                "damaged": texts.damaged,
            }
        )
        return
    read = "one file" if learned.files == 1 else f"{learned.files} files"
    print(
        f"{learned.folder}: {tokenizer.vocabulary:,} tokens like {families.by_name(learned.family).title}'s, "
        f"learned from {plain.size(learned.bytes)} in {read}"
    )
