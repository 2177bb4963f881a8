"""Chat templates: programs in Jinja that checkpoints bring along, run in a sandbox and within bounds."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, str]
"""`role` (system, user, assistant, or what else the template knows) and `content`."""
ROUNDS = 100_000
"""Steps of all `range` loops of one rendering together."""
LONGEST = 10_000_000
"""Characters of a rendered text, or of one that a template multiplies."""


def render(
    source: str,
    messages: Sequence[Message],
    tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The text that a template makes of the messages; `tokens`: `bos_token` and the like by their names.

    Raises `DaybreakError` where the template cannot be read, refuses the messages, fails, or takes too long.
    """
    template = _compiled(source)
    variables = {
        **tokens,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
        "range": _Range(),
    }
    parts, length = [], 0
    try:
        for part in template.generate(variables):
            parts.append(part)
            length += len(part)
            if length > LONGEST:
                raise OverflowError(f"it writes more than {LONGEST:,} characters")
    except DaybreakError:
        raise
    except Exception as error:  # whatever a stranger's program may raise
        raise DaybreakError(
            f"the chat template fails on these messages ({type(error).__name__}: {error}); give others, or "
            "a template of your own"
        ) from None
    return "".join(parts)


class _Range:
    """`range` for loops whose steps are counted."""

    def __init__(self) -> None:
        self._left = ROUNDS

    def __call__(self, *bounds: int) -> range:
        wanted = range(*bounds)
        self._left -= len(wanted)
        if self._left < 0:
            raise OverflowError(f"its loops take more than {ROUNDS:,} steps")
        return wanted


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from jinja2 import TemplateError

    try:
        template: Template = _environment().from_string(source)
    except (TemplateError, RecursionError, SyntaxError) as error:
        raise DaybreakError(
            f"the chat template is not one that Jinja reads ({error}); correct it, or give another"
        ) from None
    return template


@functools.cache
def _environment() -> Any:
    """The dialect that published templates are written in, which is transformers'."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for training; the text is the same."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_size(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _check_size(operator: str, left: Any, right: Any) -> None:
    """Numbers to a power, and texts or lists many times over, fill the memory in one step."""
    for one, other in ((left, right), (right, left)):
        if operator == "*" and hasattr(one, "__len__") and isinstance(other, int):
            if len(one) * other > LONGEST:
                raise OverflowError(f"it makes something longer than {LONGEST:,}")
        elif operator == "**" and isinstance(one, int) and abs(one) > 1_000:
            raise OverflowError("it raises to a power with a number above 1,000")


def _refuse(message: str) -> NoReturn:
    raise DaybreakError(f"the chat template refuses these messages: {message}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML does not allow."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


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
