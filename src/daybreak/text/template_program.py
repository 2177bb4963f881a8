"""A chat template run: a program of strangers in Jinja, in its sandbox and within bounds.

`daybreak.text.template_process` runs this in a process of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from jinja2 import Template

ROUNDS = 100_000
"""Steps of all `range` loops of one rendering together."""
LONGEST = 10_000_000
"""Characters of a rendered text, or of one that a template multiplies."""


def run(source: str, variables: Mapping[str, Any]) -> str:
    """The text that a template writes. Raises `DaybreakError` where it cannot be read, refuses or fails;
    `MemoryError` where the memory ends."""
    template = _compiled(source)
    parts, length = [], 0
    try:
        for part in template.generate({**variables, "range": _Range()}):
            parts.append(part)
            length += len(part)
            if length > LONGEST:
                raise OverflowError(f"it writes more than {LONGEST:,} characters")
    except (DaybreakError, MemoryError):
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


def prepare() -> None:
    """Import what templates need."""
    _environment()


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    try:
        template: Template = _environment().from_string(source)
    except MemoryError:
        raise
    except Exception as error:  # TemplateError, or what Python says of the code made of it
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
