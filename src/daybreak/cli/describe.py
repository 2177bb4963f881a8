"""`daybreak describe`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from daybreak.cli import plain


def describe(
    name: Annotated[str, typer.Argument(help="A model (bloom-7b1), a family (bloom) or a local folder.")],
    fits: Annotated[
        bool, typer.Option("--fits", help="Where it fits on this machine, and how fast it can be, instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Tell a model's decisions in words, its exact parameters, its memory, its paper and its repository.

    With --fits: bytes of weights and cache in every format, whether this machine has them, and how many
    tokens a second the speed of its memory allows. That is measured, for about a second; nothing is
    downloaded.
    """
    from daybreak.compare import describe as logic

    if fits:
        _fits(name, as_json)
        return
    told = logic.describe(name)
    if as_json:
        plain.print_json(told)
        return
    print(_heading(told))
    print(plain.columns(_sources(told), indent=2))
    for room, lines in told["decisions"].items():
        print(f"\n{room}")
        print(plain.columns([[line["title"], line["words"]] for line in lines], indent=2))
    print("\n" + (_sizes(told["family"]["sizes"]) if told["kind"] == "family" else _numbers(told)))


def _fits(name: str, as_json: bool) -> None:
    from daybreak.cli import describe_fits
    from daybreak.compare.fits import fits

    told = fits(name)
    if as_json:
        plain.print_json(told)
    else:
        print("\n".join(describe_fits.lines(told)))


def _heading(told: dict[str, Any]) -> str:
    family = told["family"]
    what = {
        "family": "a family",
        "model": f"of {family['title']}",
        "folder": f"of the family {family['title']}",
    }
    return f"{told['name']}, {what[told['kind']]} ({family['year']})"


def _sources(told: dict[str, Any]) -> list[list[str]]:
    family = told["family"]
    rows = [["story", family["story"]], ["paper", family["paper"]]]
    if told["kind"] == "model":
        rows.append(
            [
                "repository",
                told["hub"] or ("none" if told["note"] else "none: the weights were never published"),
            ]
        )
        rows += [["note", told["note"]]] if told["note"] else []
    tokens = ", ".join(
        f"{key.removesuffix('_token_id')} {number}" for key, number in told["special_tokens"].items()
    )
    start = "; every text starts with bos" if told["starts_with_bos"] else ""
    return [*rows, ["special tokens", (tokens or "none") + start]]


def _sizes(sizes: list[dict[str, Any]]) -> str:
    rows = [
        [size["name"], f"{size['parameters']:,}", size["hub"] or size["note"] or "never published"]
        for size in sizes
    ]
    return plain.columns([["size", "parameters", "repository"], *rows], right=frozenset({1}))


def _numbers(told: dict[str, Any]) -> str:
    parts = told["parameters"]
    shown = [
        [name.replace("_", "-"), f"{parts[name]:,}", _share(parts[name], parts["total"])] for name in parts
    ]
    weights = [[dtype, plain.size(number), ""] for dtype, number in _joined(told["weight_bytes"]).items()]
    title, kept = "\nmemory of the key-value cache for 1000 tokens of one text", "cache_bytes_per_1000_tokens"
    if kept not in told:
        title, kept = "\nmemory of the state of one text, of any length", "state_bytes"
    cache = [[dtype, plain.size(number), ""] for dtype, number in told[kept].items()]
    right = frozenset({1})
    return "\n".join(
        (
            "parameters",
            plain.columns(shown, right, indent=2),
            "\nmemory of the weights (quantised: without scales)",
            plain.columns(weights, right, indent=2),
            *_packed(told.get("packed_weight_bytes", {})),
            title,
            plain.columns(cache, right, indent=2),
        )
    )


def _packed(sizes: dict[str, int]) -> list[str]:
    if not sizes:
        return []
    rows = [[dtype, plain.size(number), ""] for dtype, number in sizes.items()]
    title = "\nmemory as published packed (matrices of the layers alone, with scales; the rest in float16)"
    return [title, plain.columns(rows, frozenset({1}), indent=2)]


def _joined(sizes: dict[str, int]) -> dict[str, int]:
    """The two 16-bit types on one line."""
    names: dict[int, str] = {}
    for dtype, number in sizes.items():
        names[number] = f"{names[number]}, {dtype}" if number in names else dtype
    return {name: number for number, name in names.items()}


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if part != total else ""
