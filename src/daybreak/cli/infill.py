"""`daybreak infill`: fill the blanks of a text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli.writing import entries, field, load, settings_among, tell
from daybreak.cli.writing import texts as read
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.infill import Filled
    from daybreak.language_model import LanguageModel

_OTHER = {"model", "texts", "as_json", "lines", "defaults", "batch_size", "revision", "dtype", "device"}
UNDERLINED, PLAIN = "\033[4m", "\033[0m"


def infill(
    model: Annotated[str, typer.Argument(help="A folder, a repository of the hub, or a published size.")],
    texts: Annotated[list[str], typer.Argument(help="Texts with blanks; - reads standard input.")],
    max_new_tokens: Annotated[int | None, field("max_new_tokens", "--max-new-tokens", "-m")] = None,
    max_length: Annotated[int | None, field("max_length")] = None,
    min_new_tokens: Annotated[int | None, field("min_new_tokens")] = None,
    stop: Annotated[list[str] | None, field("stop")] = None,
    stop_token: Annotated[list[int] | None, field("stop_tokens")] = None,
    ignore_eos: Annotated[bool, field("ignore_eos", "--ignore-eos")] = False,
    temperature: Annotated[float | None, field("temperature", "--temperature", "-t")] = None,
    top_k: Annotated[int | None, field("top_k")] = None,
    top_p: Annotated[float | None, field("top_p")] = None,
    min_p: Annotated[float | None, field("min_p")] = None,
    typical_p: Annotated[float | None, field("typical_p")] = None,
    seed: Annotated[int | None, field("seed")] = None,
    n: Annotated[int | None, field("n", "--n", "-n")] = None,
    repetition_penalty: Annotated[float | None, field("repetition_penalty")] = None,
    presence_penalty: Annotated[float | None, field("presence_penalty")] = None,
    frequency_penalty: Annotated[float | None, field("frequency_penalty")] = None,
    suppress_token: Annotated[list[int] | None, field("suppress_tokens")] = None,
    begin_suppress_token: Annotated[list[int] | None, field("begin_suppress_tokens")] = None,
    logprobs: Annotated[int | None, field("logprobs")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per result and line.")
    ] = False,
    lines: Annotated[bool, typer.Option(help="Every line of standard input is a text of its own.")] = False,
    defaults: Annotated[bool, typer.Option(help="Use the checkpoint's generation_config.json.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts that are written together at most.")] = 32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Fill the blanks of a text; it appears as it is written.

    [MASK] stands for some words, [sMASK] for sentences, [gMASK] at the end for the rest of the text. They are
    filled in order, each in the text in which those before it are filled. Settings hold for each blank.
    Several texts, or several samples (--n), are printed when they are done.
    """
    settings = settings_among(dict(locals()), _OTHER)
    Sampling(**settings)  # wrong settings are named before a model is loaded for them
    if logprobs is not None and not as_json:
        raise DaybreakError("log-probabilities are printed as JSON only; add --json")
    given = [text for entry in texts for text in read(entry, lines)]
    loaded = load(model, revision, dtype, device)
    if len(given) == 1 and (n or 1) == 1 and not as_json:
        _print_stream(loaded, given[0], defaults, settings)
    else:
        _print_all(loaded, given, as_json, defaults=defaults, batch_size=batch_size, **settings)


def _print_stream(model: LanguageModel, text: str, defaults: bool, settings: dict[str, Any]) -> None:
    """What fills a blank is underlined on a terminal."""
    marked = sys.stdout.isatty()
    try:
        for piece, blank in model.infill_stream(text, defaults=defaults, **settings):
            drawn = f"{UNDERLINED}{piece}{PLAIN}" if marked and blank is not None else piece
            print(drawn, end="", flush=True)
    finally:  # interrupted, too: what is there stays, and the shell's prompt gets a line of its own
        print(flush=True)


def _print_all(model: LanguageModel, texts: list[str], as_json: bool, **settings: Any) -> None:
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
