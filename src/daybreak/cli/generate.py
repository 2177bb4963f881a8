"""`daybreak generate`: continue a prompt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli.writing import entries, field, load, settings_among, tell
from daybreak.cli.writing import texts as read
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.continuation import Result
    from daybreak.language_model import LanguageModel

_OTHER = {"model", "prompts", "as_json", "lines", "defaults", "batch_size", "revision", "dtype", "device"}


def generate(
    model: Annotated[str, typer.Argument(help="A folder, a repository of the hub, or a published size.")],
    prompts: Annotated[list[str], typer.Argument(help="What to continue; - reads standard input.")],
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
    prompt_logprobs: Annotated[int | None, field("prompt_logprobs")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per result and line.")
    ] = False,
    lines: Annotated[bool, typer.Option(help="Every line of standard input is a prompt of its own.")] = False,
    defaults: Annotated[bool, typer.Option(help="Use the checkpoint's generation_config.json.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts that are written together at most.")] = 32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Continue a prompt; the text appears as it is written.

    Several prompts, or several samples (--n), are written together and printed when they are done.
    """
    settings = settings_among(dict(locals()), _OTHER)
    Sampling(**settings)  # wrong settings are named before a model is loaded for them
    if (logprobs is not None or prompt_logprobs is not None) and not as_json:
        raise DaybreakError("log-probabilities are printed as JSON only; add --json")
    texts = [text for prompt in prompts for text in read(prompt, lines)]
    loaded = load(model, revision, dtype, device)
    if len(texts) == 1 and (n or 1) == 1 and not as_json:
        _print_stream(loaded, texts[0], defaults, settings)
    else:
        _print_all(loaded, texts, as_json, defaults=defaults, batch_size=batch_size, **settings)


def _print_stream(model: LanguageModel, prompt: str, defaults: bool, settings: dict[str, Any]) -> None:
    from daybreak.engine.generate import stream

    try:
        for piece in stream(model, prompt, defaults=defaults, **settings):
            print(piece, end="", flush=True)
    finally:  # interrupted, too: what is there stays, and the shell's prompt gets a line of its own
        print(flush=True)


def _print_all(model: LanguageModel, prompts: list[str], as_json: bool, **settings: Any) -> None:
    results = model.generate(
        prompts, progress=lambda done, all_: tell(f"{done} of {all_} texts written"), **settings
    )
    tell("")
    for result in results:
        if as_json:
            print(json.dumps(_as_json(prompts[result.prompt], result), ensure_ascii=False))
        elif len(results) > 1:
            title = " ".join(prompts[result.prompt].split())
            sample = f", sample {result.sample + 1}" if len(results) > len(prompts) else ""
            print(f"[prompt {result.prompt + 1}{sample}: {title[:60]}]\n{result.text}\n")
        else:
            print(result.text)
    sys.stdout.flush()


def _as_json(prompt: str, result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": result.prompt,
        "sample": result.sample,
        "prompt": prompt,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "tokens": result.tokens,
        "prompt_tokens": result.prompt_tokens,
    }
    for name in ("logprobs", "prompt_logprobs"):
        found = getattr(result, name)
        if found is not None:
            told[name] = list(entries(found))
    return told
