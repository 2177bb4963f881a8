"""What the commands that let a model write have in common: texts from outside, the model itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.engine import Engine
    from daybreak.engine.logprobs import TokenLogprob
    from daybreak.language_model import LanguageModel
    from daybreak.recurrent_model import RecurrentModel


def texts(argument: str, lines: bool) -> list[str]:
    """An argument as texts: itself, or for `-` standard input, with `lines` one text a line."""
    try:
        text = sys.stdin.read() if argument == "-" else argument
        text.encode()  # bytes that are no text reach Python as lone surrogates
    except UnicodeError as error:
        raise DaybreakError(f"the prompt is not UTF-8 text: {error}") from None
    if argument != "-":
        return [argument]
    return text.splitlines() if lines else [text.removesuffix("\n")]


def load(model: str, revision: str | None, dtype: str, device: str, bits: int | None) -> LanguageModel:
    """The model, with a word on the terminal while it is loaded."""
    tell(f"loading {model} ...")
    from daybreak import language_model
    from daybreak.engine.kernels import build

    if not build.ready():
        tell("compiling the kernels for this processor, once ...")
        build.library()
        tell(f"loading {model} ...")
    found = build.library()
    if found.functions is None and os.environ.get(build.OFF) != "0" and device == "cpu":
        tell("")
        print(f"note: without the compiled kernels, and slow: {found.about}", file=sys.stderr, flush=True)

    loaded = language_model.load(model, revision, dtype, device, bits)
    tell("")
    return loaded


def load_any(
    model: str, revision: str | None, dtype: str, device: str, bits: int | None
) -> LanguageModel | RecurrentModel:
    """The same for a command that an LSTM understands, too."""
    from daybreak import models
    from daybreak.recurrent_model import is_recurrent_folder

    if not is_recurrent_folder(Path(model)):
        return load(model, revision, dtype, device, bits)
    return models.load(model, revision, dtype, device, bits)


def adapt(model: LanguageModel, folder: str | None) -> None:
    """Give the model an adapter: in the weights, which costs nothing, unless they would round it away."""
    if folder is None:
        return
    from daybreak.model.merging import why_not_merged

    model.load_adapter(folder, "adapter")
    if str(model.dtype) == "torch.float32" and why_not_merged(model.decoder, "adapter") is None:
        model.merge("adapter")


def engine_of(
    model: LanguageModel,
    cache_dtype: str | None,
    batch_size: int = 1,
    draft: str | None = None,
    bits: int | None = None,
) -> Engine:
    """An engine for the whole command; a `draft` is loaded as the model was."""
    guesser = None if draft is None else load(draft, None, str(model.dtype).split(".")[-1], "cpu", bits)
    return model.engine(guesser, batch_size=batch_size, cache_dtype=cache_dtype)


def tell(status: str) -> None:
    """One line on the terminal that the next one replaces; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{status}", end="", file=sys.stderr, flush=True)


def entries(logprobs: list[TokenLogprob | None]) -> Iterator[dict[str, Any] | None]:
    """Log-probabilities as JSON has them."""
    for entry in logprobs:
        if entry is None:
            yield None
            continue
        top = [{"token": token, "logprob": value} for token, value in entry.top]
        yield {"token": entry.token, "logprob": entry.logprob, "top": top}
