"""`daybreak quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daybreak.cli import plain
from daybreak.cli.options import Model, Revision

if TYPE_CHECKING:
    from daybreak.engine.damage import Damage


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to write; new or empty.")],
    bits: Annotated[int, typer.Option(help="Of each weight: 8 or 4.")] = 8,
    group: Annotated[
        int | None,
        typer.Option(
            help="Inputs that share a scale: 32, 64, 128, or 0 for all of a row. [default: 0 or 32]"
        ),
    ] = None,
    zeros: Annotated[bool, typer.Option("--zeros", help="A zero point for each scale.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="Compare with the original on this text: perplexity and KL.")
    ] = None,
    most: Annotated[
        int, typer.Option("--tokens", help="Tokens of the text that are compared at most.")
    ] = 8192,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Write a checkpoint with weights of 8 or 4 bits, tensor by tensor: it need not fit into memory."""
    from daybreak.cli.convert import Bar
    from daybreak.engine.quantised import Scheme
    from daybreak.engine.quantised_folder import write_quantised

    usual = Scheme.usual(bits)
    scheme = Scheme(usual.bits, usual.group if group is None else group or None, zeros)
    content = None if text is None else _read(text)
    with Bar() as bar:
        opened = write_quantised(model, out, scheme, revision=revision, progress=bar.show)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    found = None if content is None else _damage(model, revision, out, content, most)
    if as_json:
        told = {} if found is None else {"damage": vars(found) | {"increase": found.increase}}
        scheme_told = {"bits": scheme.bits, "group": scheme.group, "zeros": scheme.zeros}
        plain.print_json({"folder": str(out), **scheme_told, "bytes": size, **told})
        return
    shared = "a scale for each row" if scheme.group is None else f"a scale for {scheme.group} inputs"
    print(f"{out}: {opened.family.title}, {scheme.bits} bits, {shared}, {plain.size(size)}")
    if found is not None:
        print(_told(found))


def _read(file: Path) -> str:
    from daybreak.errors import DaybreakError

    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DaybreakError(f"{file} cannot be read: {error}") from None


def _damage(model: str, revision: str | None, out: Path, content: str, most: int) -> Damage:
    import daybreak
    from daybreak.engine.damage import damage
    from daybreak.errors import DaybreakError

    original = daybreak.load(model, revision)
    if original.tokenizer is None:
        raise DaybreakError(f"{model} has no tokenizer, so no text can be compared on; leave --text out")
    tokens = original.tokenizer.encode(content, special=False)[:most]
    return damage(original.decoder, daybreak.load(out).decoder, tokens)


def _told(found: Damage) -> str:
    before, after = found.perplexities
    return (
        f"on {found.tokens:,} tokens: perplexity {before:.4g} -> {after:.4g} ({found.increase:+.2%}), "
        f"KL {found.kl:.2g} nats, the same first choice {found.agreement:.1%}"
    )
