"""`daybreak infill`: fill the blanks of a text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli.options import (
    AsJson,
    BatchSize,
    Bits,
    CacheDtype,
    Defaults,
    Device,
    Dtype,
    Model,
    Revision,
    sampling_options,
)
from daybreak.cli.writing import engine_of, entries, load, tell
from daybreak.cli.writing import texts as read
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.infill import Filled
    from daybreak.language_model import LanguageModel

UNDERLINED, PLAIN = "\033[4m", "\033[0m"


@sampling_options("prompt_logprobs", max_new_tokens=("--max-new-tokens", "-m"))
def infill(
    model: Model,
    texts: Annotated[list[str], typer.Argument(help="Texts with blanks; - reads standard input.")],
    settings: dict[str, Any],
    as_json: AsJson = False,
    lines: Annotated[bool, typer.Option(help="Every line of standard input is a text of its own.")] = False,
    defaults: Defaults = True,
    batch_size: BatchSize = 32,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    bits: Bits = None,
    cache_dtype: CacheDtype = None,
) -> None:
    """Fill the blanks of a text; it appears as it is written.

    [MASK] stands for some words, [sMASK] for sentences, [gMASK] at the end for the rest of the text. They are
    filled in order, each in the text in which those before it are filled. Settings hold for each blank.
    Several texts, or several samples (--n), are printed when they are done.
    """
    if "logprobs" in settings and not as_json:
        raise DaybreakError("log-probabilities are printed as JSON only; add --json")
    given = [text for entry in texts for text in read(entry, lines)]
    loaded = load(model, revision, dtype, device, bits)
    settings.update(defaults=defaults, engine=engine_of(loaded, cache_dtype, batch_size))
    if len(given) == 1 and settings.get("n", 1) == 1 and not as_json:
        _print_stream(loaded, given[0], settings)
    else:
        _print_all(loaded, given, as_json, settings)


def _print_stream(model: LanguageModel, text: str, settings: dict[str, Any]) -> None:
    """What fills a blank is underlined on a terminal."""
    marked = sys.stdout.isatty()
    pieces = model.infill_stream(text, **settings)
    try:
        for piece, blank in pieces:
            drawn = f"{UNDERLINED}{piece}{PLAIN}" if marked and blank is not None else piece
            print(drawn, end="", flush=True)
    finally:  # interrupted, too: what is there stays, and the shell's prompt gets a line of its own
        print(flush=True)


def _print_all(model: LanguageModel, texts: list[str], as_json: bool, settings: dict[str, Any]) -> None:
    results = model.infill(
        texts, progress=lambda done, all_: tell(f"{done} of {all_} blanks filled"), **settings
    )
    tell("")
    for result in results:
        if as_json:
            print(json.dumps(_as_json(texts[result.prompt], result), ensure_ascii=False))
        elif len(results) > 1:
            sample = f", sample {result.sample + 1}" if len(results) > len(texts) else ""
            print(f"[text {result.prompt + 1}{sample}]\n{result.text}\n")
        else:
            print(result.text)
    sys.stdout.flush()


def _as_json(text: str, result: Filled) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": result.prompt,
        "sample": result.sample,
        "prompt": text,
        "text": result.text,
        "blanks": [],
        "tokens": result.tokens,
    }
    for blank in result.blanks:
        entry = asdict(blank)
        del entry["logprobs"]
        if blank.logprobs is not None:
            entry["logprobs"] = list(entries(list(blank.logprobs)))
        told["blanks"].append(entry)
    return told
