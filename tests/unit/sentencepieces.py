"""Small sentencepiece models of the shape of the published ones, and their published use, written plainly."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

CORPUS = [
    *Path(json.__file__).read_text().split("\n"),
    "北京故宫是中国现存最大的古代宫殿建筑群，你好，世界！",
    "人工智能是计算机科学的一个分支。数据 模型 分词",
    "the quick brown fox jumps over the lazy dog",
]
COMMANDS = ["[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


@functools.cache
def trained(exact: bool, kind: str = "unigram", line_break: bool = True) -> bytes:
    """A model of 400 pieces, the first five as in the published file.

    `exact`: texts come back as they were; otherwise with the trainer's defaults, which the published ones
    have: compatibility characters are replaced, white space is trimmed.
    """
    how: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    contents = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=contents,
        vocab_size=400,
        model_type=kind,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=["<n>"] if line_break else [],
        minloglevel=2,
        **(how if exact else {}),
    )
    return contents.getvalue()


def completed(model: bytes, commands: int = CONTROL) -> bytes:
    """The model with the pieces that later releases of the file have; `commands`: their kind."""
    blanks = [f"<|blank_{length}|>" for length in range(2, 81)]
    further = [
        *((text, commands) for text in COMMANDS),
        *((text, USER_DEFINED) for text in ("<|tab|>", *blanks)),
        *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    ]
    return model + b"".join(piece(text, kind) for text, kind in further) + b"\x12\x03\x98\x02\x01"


def piece(text: str, kind: int) -> bytes:
    spelled = text.encode()
    body = b"\x0a" + bytes([len(spelled)]) + spelled + b"\x15\0\0\0\0\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


class Published:
    """What the published code does with ice_text.model, step by step."""

    def __init__(self, model: bytes, images: int) -> None:
        self.processor = SentencePieceProcessor(model_proto=completed(model))
        self.images = images

    def encode(self, text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for length in range(80, 1, -1):
            text = text.replace(" " * length, f"<|blank_{length}|>")
        return [number + self.images for number in self.processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.processor.decode([number - self.images for number in ids if number >= self.images])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for length in range(2, 81):
            text = text.replace(f"<|blank_{length}|>", " " * length)
        return text


def write(folder: Path, name: str, model: bytes, **files: Any) -> Path:
    """A tokenizer's folder: the model, and JSON files by their name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model)
    for file, contents in files.items():
        (folder / f"{file}.json").write_text(json.dumps(contents))
    return folder
