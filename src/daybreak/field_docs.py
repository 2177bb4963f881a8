"""The sentences that stand under a settings class's fields, for those who show them as help."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_docs(settings: type) -> dict[str, str]:
    """Field name -> the docstring under it, read from the source of the class and of those that it extends;
    fields without one are left out."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__[:-1]):
        found.update(_own(kind))
    return found


def _own(settings: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found
