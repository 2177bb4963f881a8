"""What a general compressor reaches on a text: the yardstick beside a language model's bits per byte."""

from __future__ import annotations

import lzma
from dataclasses import dataclass


@dataclass(frozen=True)
class Compressed:
    """Bits per byte of a validation text under `xz -9e`."""

    alone: float
    """The text by itself."""
    after_training: float
    """What the text adds to the compressed training text: xz may copy from all of it."""


def xz(training: bytes, validation: bytes) -> Compressed:
    """Both figures; takes about a second per megabyte."""
    first, both = _size(training), _size(training + validation)
    bits = 8 / len(validation)
    return Compressed(_size(validation) * bits, (both - first) * bits)


def _size(text: bytes) -> int:
    # The dictionary spans the whole text, so that nothing is out of reach; the 64 MiB of the preset would
    # cost ten times the memory for nothing where the text is short, and would be too little where it is long.
    dictionary = min(max(len(text), 1 << 12), (1 << 30) + (1 << 29))
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
    return len(lzma.compress(text, lzma.FORMAT_XZ, filters=filters))
