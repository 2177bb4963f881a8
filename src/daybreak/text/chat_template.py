"""Chat templates, which checkpoints bring along: where they stand, and the text that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from daybreak.errors import DaybreakError
from daybreak.text.template_process import ask

Message = Mapping[str, str]
"""`role` (system, user, assistant, or what else the template knows) and `content`."""


def render(
    source: str,
    messages: Sequence[Message],
    tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The text that a template makes of the messages; `tokens`: `bos_token` and the like by their names.

    Raises `DaybreakError` where the template cannot be read, refuses the messages, fails, takes too long or
    needs too much memory.
    """
    variables = {
        **tokens,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
    }
    return ask(source, variables)


# Where checkpoints keep them ------------------------------------

JINJA, OLDER, KEY = "chat_template.jinja", "chat_template.json", "chat_template"


def find_template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """The template among a tokenizer's files: chat_template.jinja, else what tokenizer_config.json says, else
    chat_template.json.

    Of several with names the one called default, else the first. None if there is none. Raises
    `DaybreakError` for what is no template.
    """
    return next((source for source in _found(files, config) if source), None)


def _found(files: Mapping[str, bytes], config: Mapping[str, Any]) -> Iterator[str]:
    if JINJA in files:
        try:
            yield files[JINJA].decode()
        except UnicodeDecodeError as error:
            raise DaybreakError(f"{JINJA} is not UTF-8 text ({error}); fetch it again") from None
    if config.get(KEY) is not None:
        yield _one("tokenizer_config.json", config[KEY])
    if OLDER in files:
        try:
            said = json.loads(files[OLDER])
        except ValueError as error:
            raise DaybreakError(f"{OLDER} is not valid JSON ({error}); fetch it again") from None
        yield _one(OLDER, said.get(KEY, "") if isinstance(said, dict) else said)


def _one(file: str, entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    named: dict[Any, Any] = {}
    if isinstance(entry, dict):
        named = entry
    elif isinstance(entry, list):
        named = {one.get("name"): one.get("template") for one in entry if isinstance(one, dict)}
    found = named.get("default", next(iter(named.values()), None))
    if not isinstance(found, str):
        raise DaybreakError(
            f"{file}: chat_template is neither a text nor a list of templates with names; fetch it again"
        )
    return found
