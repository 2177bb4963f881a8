"""What the commands that let a model write have in common: options, texts from outside, the model itself."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from daybreak.engine.explain import field_docs
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.engine.logprobs import TokenLogprob
    from daybreak.language_model import LanguageModel

_HELP = field_docs(Sampling)
_FIELDS = {
    "stop_token": "stop_tokens",
    "suppress_token": "suppress_tokens",
    "begin_suppress_token": "begin_suppress_tokens",
}
"""Options that may come several times are named for one."""


def field(name: str, *flags: str) -> Any:
    """An option that is a field of the settings, explained by the sentence under it."""
    return typer.Option(*flags, help=_HELP[name], show_default=False)


def settings_among(given: Mapping[str, Any], other: Collection[str]) -> dict[str, Any]:
    """Those of a command's arguments that are fields of the settings and were given; `other` are none."""
    named = {_FIELDS.get(name, name): value for name, value in given.items() if name not in other}
    return {name: value for name, value in named.items() if _is_given(value)}


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


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


def load(model: str, revision: str | None, dtype: str, device: str) -> LanguageModel:
    """The model, with a word on the terminal while it is loaded."""
    tell(f"loading {model} ...")
    import daybreak

    loaded = daybreak.load(model, revision, dtype, device)
    tell("")
    return loaded


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
