"""`daybreak tokenizer compare`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from daybreak.cli import plain
from daybreak.errors import DaybreakError


def compare(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Folders with a tokenizer, repositories of the hub, published sizes.")
    ],
    text: Annotated[list[str], typer.Option("--text", help="Files to measure on; may be repeated.")],
    key: Annotated[str, typer.Option(help="Where JSON and parquet have the text.")] = "text",
    megabytes: Annotated[float, typer.Option(help="Measure on so much of the text, from its start.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Tokenizers side by side on a text: tokens, bytes per token, whether every text comes back as it was,
    and speed on one core.
    """
    from dataclasses import asdict

    from daybreak.data.compare_tokenizers import measure, open_tokenizer
    from daybreak.data.texts import Texts, first_texts

    if megabytes <= 0:
        raise DaybreakError(f"--megabytes is {megabytes:g}; it must be above 0")
    opened = [(name, open_tokenizer(name)) for name in tokenizers]
    read = Texts(text, key)
    texts = first_texts(read, round(megabytes * 1e6))
    found = [measure(name, tokenizer, texts) for name, tokenizer in opened]
    for problem in read.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if as_json:
        plain.print_json([asdict(one) for one in found])
        return
    rows = [("entries", "tokens", "bytes/token", "exact", "encode MB/s", "decode MB/s", "tokenizer")]
    rows += [
        (
            f"{one.vocabulary:,}",
            f"{one.tokens:,}",
            f"{one.bytes_per_token:.3f}",
            "yes" if one.exact == one.texts else f"{one.exact} of {one.texts}",
            f"{one.encode_speed:.1f}",
            f"{one.decode_speed:.1f}",
            one.name,
        )
        for one in found
    ]
    print(plain.columns(rows, right=frozenset({0, 1, 2, 4, 5})))
