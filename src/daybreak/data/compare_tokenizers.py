"""Tokenizers side by side on a text: how short they make it, whether it comes back, how fast they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Measured:
    """One tokenizer on the texts."""

    name: str
    vocabulary: int
    tokens: int
    bytes_per_token: float
    exact: int
    """Texts that came back from their tokens as they were."""
    texts: int
    encode_speed: float
    """UTF-8 of text per second, in MB (10**6 bytes), on one core, after a first short text."""
    decode_speed: float


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer in a folder, in a repository of the hub or of a published size. Raises `DaybreakError`
    where there is none."""
    folder = Path(name)
    if not folder.is_dir():
        from daybreak.checkpoint.hub import resolve_tokenizer

        folder = resolve_tokenizer(name)
    found = Tokenizer.load(folder)
    if found is None:
        raise DaybreakError(
            f"{name} has no tokenizer; give a folder with tokenizer.json, or a published size"
        )
    return found


def measure(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> Measured:
    """Encode and decode every text, as text: what looks like a special token is none."""
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    tokenizer.decode(tokenizer.encode(texts[0][:1000], bos=False, special=False))
    start = time.perf_counter()
    encoded = [tokenizer.encode(text, bos=False, special=False) for text in texts]
    between = time.perf_counter()
    decoded = [tokenizer.decode(ids, skip_special=False) for ids in encoded]
    end = time.perf_counter()
    tokens = sum(map(len, encoded))
    return Measured(
        name=name,
        vocabulary=tokenizer.vocabulary,
        tokens=tokens,
        bytes_per_token=size / max(tokens, 1),
        exact=sum(before == after for before, after in zip(texts, decoded, strict=True)),
        texts=len(texts),
        encode_speed=size / 1e6 / (between - start),
        decode_speed=size / 1e6 / (end - between),
    )
