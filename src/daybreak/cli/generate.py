"""`daybreak generate`: continue a prompt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli.options import (
    Adapter,
    AsJson,
    BatchSize,
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
from daybreak.cli.writing import adapt, engine_of, entries, load_any, tell
from daybreak.cli.writing import texts as read
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.continuation import Result
    from daybreak.language_model import LanguageModel
    from daybreak.recurrent_model import RecurrentModel

    AnyModel = LanguageModel | RecurrentModel


@sampling_options(max_new_tokens=("--max-new-tokens", "-m"))
def generate(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="What to continue; - reads standard input.")],
    settings: dict[str, Any],
    as_json: AsJson = False,
    lines: Annotated[bool, typer.Option(help="Every line of standard input is a prompt of its own.")] = False,
    defaults: Defaults = True,
    batch_size: BatchSize = 32,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    bits: Bits = None,
    cache_dtype: CacheDtype = None,
    draft: Draft = None,
    adapter: Adapter = None,
) -> None:
    """Continue a prompt; the text appears as it is written.

    Several prompts, or several samples (--n), are written together and printed when they are done.
    """
    if not as_json and not {"logprobs", "prompt_logprobs"}.isdisjoint(settings):
        raise DaybreakError("log-probabilities are printed as JSON only; add --json")
    texts = [text for prompt in prompts for text in read(prompt, lines)]
    loaded = load_any(model, revision, dtype, device, bits)
    _adapt(loaded, adapter)
    settings.update(defaults=defaults, **_engine(loaded, cache_dtype, batch_size, draft, bits))
    if len(texts) == 1 and settings.get("n", 1) == 1 and not as_json:
        _print_stream(loaded, texts[0], settings)
    else:
        _print_all(loaded, texts, as_json, settings)


def _adapt(model: AnyModel, adapter: str | None) -> None:
    from daybreak.language_model import LanguageModel

    if isinstance(model, LanguageModel):
        adapt(model, adapter)
    elif adapter is not None:
        raise DaybreakError(
            "low-rank adapters are for transformers, and this is an LSTM; leave --adapter out"
        )


def _engine(
    model: AnyModel, cache_dtype: str | None, batch_size: int, draft: str | None, bits: int | None
) -> dict[str, Any]:
    from daybreak.language_model import LanguageModel

    if isinstance(model, LanguageModel):
        return {"engine": engine_of(model, cache_dtype, batch_size, draft, bits)}
    if cache_dtype is not None or draft is not None:
        raise DaybreakError(
            "an LSTM keeps a state and no keys and values; leave --cache-dtype and --draft out"
        )
    return {}


def _print_stream(model: AnyModel, prompt: str, settings: dict[str, Any]) -> None:
    try:
        for piece in model.stream(prompt, **settings):
            print(piece, end="", flush=True)
    finally:  # interrupted, too: what is there stays, and the shell's prompt gets a line of its own
        print(flush=True)


def _print_all(model: AnyModel, prompts: list[str], as_json: bool, settings: dict[str, Any]) -> None:
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
