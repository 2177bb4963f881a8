"""`daybreak quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain
from daybreak.cli.options import Model, Revision

if TYPE_CHECKING:
    from daybreak.checkpoint.opened import Opened
    from daybreak.engine.damage import Damage
    from daybreak.engine.quantised import Scheme


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
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="The token embedding, too; tied models hold it once then.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="Compare with the original on this text: perplexity and KL.")
    ] = None,
    most: Annotated[
        int, typer.Option("--tokens", min=2, help="Tokens of the text that are compared at most.")
    ] = 8192,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Round for what the model reads of this text (GPTQ): slower, and better."),
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option(min=1024, help="Tokens of it that are read at most, from everywhere in it.")
    ] = 16384,
    shard_size: Annotated[str, typer.Option(help="Above this the weights go into several files.")] = "5GB",
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Write a checkpoint with weights of 8 or 4 bits, tensor by tensor: it need not fit into memory."""
    from daybreak.checkpoint.convert import new_folder, opened_source
    from daybreak.cli.convert import Bar
    from daybreak.engine.quantised import Scheme
    from daybreak.engine.quantised_folder import write_quantised

    usual = Scheme.usual(bits)
    scheme = Scheme(usual.bits, usual.group if group is None else group or None, zeros, embeddings)
    content, lesson = (None if file is None else _read(file) for file in (text, calibrate))
    new_folder(out)  # before anything is downloaded for it
    opened = opened_source(model, None, revision, False)
    tokens = None if content is None else _tokens(opened, content, model, most)
    texts = () if lesson is None else _texts(opened, lesson, model, calibration_tokens)
    with Bar() as bar:
        write_quantised(opened, out, scheme, shard_size=shard_size, progress=bar.show, texts=texts)
    found = None if tokens is None else _damage(model, revision, out, tokens)
    _print(opened, out, scheme, found, as_json)


def _read(file: Path) -> str:
    from daybreak.errors import DaybreakError

    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DaybreakError(f"{file} cannot be read: {error}") from None


def _tokens(opened: Opened, content: str, model: str, most: int) -> list[int]:
    """At most so many; enough to compare on, which is found out before the work and not behind it."""
    from daybreak.engine.damage import stretches
    from daybreak.errors import DaybreakError

    if opened.tokenizer is None:
        raise DaybreakError(f"{model} has no tokenizer, so no text can be compared on; leave --text out")
    tokens = opened.tokenizer.encode(content, special=False)[:most]
    stretches(tokens, opened.architecture.context)
    return tokens


def _texts(opened: Opened, content: str, model: str, most: int) -> list[Any]:
    from daybreak.engine.calibration import windows
    from daybreak.errors import DaybreakError

    if opened.tokenizer is None:
        raise DaybreakError(f"{model} has no tokenizer, so no text can be read; leave --calibrate out")
    return windows(opened.tokenizer.encode(content, special=False), opened.architecture.context, most)


def _damage(model: str, revision: str | None, out: Path, tokens: list[int]) -> Damage:
    from daybreak.engine.damage import damage
    from daybreak.language_model import load

    return damage(load(model, revision).decoder, load(out).decoder, tokens)


def _print(opened: Opened, out: Path, scheme: Scheme, found: Damage | None, as_json: bool) -> None:
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    if as_json:
        told = {} if found is None else {"damage": vars(found) | {"increase": found.increase}}
        plain.print_json({"folder": str(out), **vars(scheme), "bytes": size, **told})
        return
    shared = "a scale for each row" if scheme.group is None else f"a scale for {scheme.group} inputs"
    also = ", the token embedding too" if scheme.embeddings else ""
    print(f"{out}: {opened.family.title}, {scheme.bits} bits, {shared}{also}, {plain.size(size)}")
    if found is not None:
        before, after = found.perplexities
        print(
            f"on {found.tokens:,} tokens: perplexity {before:.4g} -> {after:.4g} ({found.increase:+.2%}), "
            f"KL {found.kl:.2g} nats, the same first choice {found.agreement:.1%}"
        )
