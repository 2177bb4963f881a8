"""`daybreak data mix`."""

from __future__ import annotations

from typing import Annotated

import typer

from daybreak.cli import plain


def mix(
    like: Annotated[str, typer.Option(help="The published mixture: pile, roots, gpt3 or opt.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Print a published mixture as the recipe of a data set, to fill in: sources, weights, and where the
    figures come from. `daybreak data mix --like pile > recipe.yaml` makes a file of it.
    """
    from daybreak import settings
    from daybreak.data.mixtures import mixture_file

    file = mixture_file(like)
    if as_json:
        plain.print_json(settings.read_yaml(file))
    else:
        print(file.read_text(encoding="utf-8"), end="")
