"""Options that several commands share: the settings of text generation, and which model on which device."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from daybreak.engine.settings import Sampling
from daybreak.field_docs import field_docs

_OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "max_new_tokens": (int | None, ()),
    "max_length": (int | None, ()),
    "min_new_tokens": (int | None, ()),
    "stop": (list[str] | None, ("--stop",)),
    "stop_tokens": (list[int] | None, ("--stop-token",)),
    "ignore_eos": (bool, ("--ignore-eos",)),
    "temperature": (float | None, ("--temperature", "-t")),
    "top_k": (int | None, ()),
    "top_p": (float | None, ()),
    "min_p": (float | None, ()),
    "typical_p": (float | None, ()),
    "seed": (int | None, ()),
    "n": (int | None, ("--n", "-n")),
    "repetition_penalty": (float | None, ()),
    "presence_penalty": (float | None, ()),
    "frequency_penalty": (float | None, ()),
    "suppress_tokens": (list[int] | None, ("--suppress-token",)),
    "begin_suppress_tokens": (list[int] | None, ("--begin-suppress-token",)),
    "logprobs": (int | None, ()),
    "prompt_logprobs": (int | None, ()),
}
"""Fields of the settings: kind and spellings; by default the field's name with dashes."""

Model = Annotated[str, typer.Argument(help="A folder, a GGUF file, a repository of the hub, or a name.")]
Defaults = Annotated[bool, typer.Option(help="Use the checkpoint's generation_config.json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per result and line.")]
BatchSize = Annotated[int, typer.Option(help="Texts that are written together at most.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored.")]
Bits = Annotated[int | None, typer.Option(help="8 or 4: weights of so few bits, made as they are read.")]
CacheDtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or int8: what keys and values are kept as.")
]
Draft = Annotated[
    str | None,
    typer.Option(help="A smaller model of the same tokenizer; it guesses, and the text stays the same."),
]
Adapter = Annotated[
    str | None, typer.Option(help="A folder of PEFT's with a low-rank adapter that was trained on the model.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]


def sampling_options(
    *without: str, **spellings: tuple[str, ...]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options for all fields of `Sampling` but those named; the command gets what was given as `settings`.

    They stand behind the command's arguments and before its own options. Settings that make no sense are
    refused before the command starts, so before a model is loaded for them.
    """
    names = [name for name in _OPTIONS if name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        kept = [
            entry.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, entry in own.items()
            if name != "settings"
        ]
        added = [_parameter(name, spellings.get(name)) for name in names]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            chosen = {name: given.pop(name) for name in names}
            settings = {name: value for name, value in chosen.items() if _is_given(value)}
            Sampling(**settings)
            command(**given, settings=settings)

        arguments = [entry for entry in kept if entry.default is inspect.Parameter.empty]
        options = [entry for entry in kept if entry.default is not inspect.Parameter.empty]
        order = [*arguments, *added, *options]
        called.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
        called.__annotations__ = {entry.name: entry.annotation for entry in order}
        return called

    return decorate


@functools.cache
def _help() -> dict[str, str]:
    return field_docs(Sampling)


def _parameter(name: str, spellings: tuple[str, ...] | None) -> inspect.Parameter:
    """An option that is a field of the settings, explained by the sentence under it."""
    kind, usual = _OPTIONS[name]
    option = typer.Option(*(spellings or usual), help=_help()[name], show_default=False)
    default = False if kind is bool else None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []
