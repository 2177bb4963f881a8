"""Settings: frozen dataclasses, read from YAML files and from words of the command line.

A class of settings says with types what it takes, and with the sentence under each field what that is; the
same sentence is its help, and the comment in the file that `to_yaml` writes. Fields may be classes of
settings themselves. What does not fit is refused by name: an unknown key, a value of another type, a key that
stands in a file twice.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from daybreak.errors import DaybreakError, nearest
from daybreak.field_docs import field_docs

S = TypeVar("S")
Tree = Mapping[str, Any]


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `DaybreakError` for a file that is absent, is no YAML, or holds a
    key twice."""
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), _NoTwins)
    except OSError as error:
        raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DaybreakError(f"{file} is no text in UTF-8") from None
    except yaml.YAMLError as error:
        raise DaybreakError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DaybreakError(f"{file} must hold `key: value` lines, not {_shown(found)}")
    return found


def from_words(words: Sequence[str]) -> dict[str, Any]:
    """A tree of `--section.field value` or `--section.field=value`; values are read as YAML, so that
    `[0.9, 0.95]` is a list. Raises `DaybreakError` for words of another form, and for a field given twice."""
    tree: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise DaybreakError(f"{word!r} is no setting; write --section.field value")
        if not equals:
            if not rest:
                raise DaybreakError(f"{word} has no value behind it")
            value = rest.pop(0)
        try:
            parsed = yaml.load(value, _NoTwins)
        except yaml.YAMLError:
            parsed = value
        _put(tree, name.removeprefix("--").replace("-", "_").split("."), parsed, name)
    return tree


def merged(*trees: Tree) -> dict[str, Any]:
    """One tree of several; where two give the same field, the later one's value holds."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            below = result.get(key)
            both = isinstance(value, Mapping) and isinstance(below, Mapping)
            result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def build(kind: type[S], tree: Tree, source: str = "") -> S:
    """The settings of class `kind` that `tree` holds; what it leaves out has its default.

    `source` names the tree in errors. Raises `DaybreakError` for an unknown key, an absent one that has no
    default, and a value that does not fit.
    """
    return typing.cast(S, _build(kind, tree, (), f"{source}: " if source else ""))


def build_given(kind: type[S], files: Tree, source: str, given: Tree) -> S:
    """The same of the tree in a file, which `source` names, and what is `given` over it. An error names the
    file where the file alone has it, and is else about what was given."""
    try:
        return build(kind, merged(files, given))
    except DaybreakError:
        if source:
            build(kind, files, source)
        raise


def to_tree(settings: Any) -> dict[str, Any]:
    """What `build` makes the same settings of, in values that JSON and YAML know."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def to_yaml(settings: Any, comments: bool = True) -> str:
    """The settings as YAML that `build` reads back, each field's sentence above it."""
    return "".join(f"{line}\n" for line in _lines(settings, "", comments))


def changed(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """The fields in which two settings of one class differ: dotted name -> both values."""
    first, second = _flat(to_tree(before)), _flat(to_tree(after))
    names = [*first, *(name for name in second if name not in first)]
    return {
        name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)
    }


class _NoTwins(yaml.SafeLoader):
    """YAML without the habit of keeping the last of two equal keys."""


def _mapping(loader: _NoTwins, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twins = [key for number, key in enumerate(keys) if key in keys[:number]]
    if twins:
        raise yaml.YAMLError(f"the key {twins[0]!r} stands there twice")
    return dict(loader.construct_pairs(node, deep=True))


_NoTwins.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _put(tree: dict[str, Any], path: Sequence[str], value: Any, name: str) -> None:
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise DaybreakError(f"{name} is given beside a value for the whole of {part!r}")
        tree = below
    if path[-1] in tree:
        raise DaybreakError(f"{name} is given twice")
    tree[path[-1]] = value


def _build(kind: Any, tree: Any, path: tuple[str, ...], source: str) -> Any:
    if not isinstance(tree, Mapping):
        raise DaybreakError(f"{source}{'.'.join(path)} must hold fields of its own, not {_shown(tree)}")
    types_ = _types(kind)
    for key in tree:
        if key not in types_:
            where = ".".join((*path, str(key)))
            raise DaybreakError(f"{source}there is no setting {where!r}{_suggestion(key, path, types_)}")
    given = {}
    for field in dataclasses.fields(kind):
        own = (*path, field.name)
        if field.name in tree:
            given[field.name] = _value(types_[field.name], tree[field.name], own, source)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DaybreakError(f"{source}{'.'.join(own)} is not given, and has no default")
    return kind(**given)


def _suggestion(key: Any, path: tuple[str, ...], known: Mapping[str, Any]) -> str:
    hint = nearest(str(key), known)
    return hint or f"; {'.'.join(path) or 'there'} knows {', '.join(known)}"


def _value(kind: Any, value: Any, path: tuple[str, ...], source: str) -> Any:
    own = _settings_class(kind)
    if own is not None:
        return None if value is None and own is not kind else _build(own, value, path, source)
    if typing.get_origin(kind) is tuple and len(typing.get_args(kind)) == 2:
        inside, dots = typing.get_args(kind)
        if dots is ... and inside is str and isinstance(value, str):
            return (value,)  # --lora.targets attention: a list of one needs no brackets
        if dots is ... and dataclasses.is_dataclass(inside) and isinstance(value, Sequence | Mapping):
            if isinstance(value, str | Mapping):
                raise DaybreakError(f"{source}{'.'.join(path)} must be a list, not {_shown(value)}")
            return tuple(
                _build(inside, one, (*path[:-1], f"{path[-1]}[{number}]"), source)
                for number, one in enumerate(value)
            )
    return _leaf(kind, value, path, source)


def _leaf(kind: Any, value: Any, path: tuple[str, ...], source: str) -> Any:
    from pydantic import ValidationError

    if isinstance(value, bool) and not _takes_bool(kind):
        # Lax rules would take `true` for 1, and YAML 1.1 takes `no` for false.
        raise DaybreakError(f"{source}{'.'.join(path)} is {_shown(value)}, which is no {_named(kind)}")
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise DaybreakError(f"{source}{'.'.join(path)} is {_shown(value)}: {reason}") from None


def _takes_bool(kind: Any) -> bool:
    return kind in (bool, Any) or any(_takes_bool(part) for part in typing.get_args(kind))


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _settings_class(kind: Any) -> Any:
    """The class of settings that a field holds, whether it may be absent or not."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not types.NoneType]
        kind = parts[0] if len(parts) == 1 else None
    return kind if dataclasses.is_dataclass(kind) else None


def _named(kind: Any) -> str:
    return getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind)  # type: ignore[return-value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_tree(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _flat(tree: Tree, path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        found.update(_flat(value, name) if isinstance(value, Mapping) and value else {name: value})
    return found


def _lines(settings: Any, indent: str, comments: bool) -> list[str]:
    docs = field_docs(type(settings)) if comments else {}
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if comments and field.name in docs:
            lines.append(f"{indent}# {docs[field.name]}")
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}:", *_lines(value, indent + "  ", comments)]
        else:
            text = yaml.safe_dump(
                {field.name: _plain(value)}, allow_unicode=True, sort_keys=False, width=1000
            )
            lines += [indent + line for line in text.splitlines()]
    return lines
