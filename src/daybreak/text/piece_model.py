"""The file of a sentencepiece model: its pieces, read and changed.

It is a protocol buffer (sentencepiece_model.proto): field 1 once per piece, with the piece's text (1), score
(2) and kind (3); field 2 how it was trained, field 3 how text is normalised. The sentencepiece package loads
such bytes but changes them only through another library, for which there is too little to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
PIECE, TRAINING, NORMALISATION = 1, 2, 3
TEXT, SCORE, KIND = 1, 2, 3
BYTE_FALLBACK = b"\x12\x03\x98\x02\x01"
"""Field 2 { field 35: true }, as it stands in the file. A field that comes twice is merged."""
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5


@dataclass
class PieceModel:
    """The pieces in the order of their ids, and all else as it stands in the file."""

    texts: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    """The message of each piece."""
    rest: bytes = b""

    @classmethod
    def read(cls, contents: bytes) -> PieceModel:
        """Raises `ValueError` for bytes that are no model, or end early."""
        model, rest, seen = cls(), [], set()
        for number, start, body, end in _fields(contents):
            seen.add(number)
            if number == PIECE:
                model._piece(contents[body:end])
            else:
                rest.append(contents[start:end])
        if not {PIECE, TRAINING, NORMALISATION} <= seen:
            raise ValueError("it holds no pieces, or ends before what follows them")
        model.rest = b"".join(rest)
        return model

    def _piece(self, body: bytes) -> None:
        text, kind = "", NORMAL
        for number, _, start, end in _fields(body):
            if number == TEXT:
                text = body[start:end].decode()
            elif number == KIND:
                kind = body[start]
        self.texts.append(text)
        self.kinds.append(kind)
        self.bodies.append(body)

    def append(self, text: str, kind: int) -> None:
        """One more piece, of the score 0."""
        spelled = text.encode()
        score = _tag(SCORE, FOUR_BYTES) + bytes(4)
        self._piece(_tag(TEXT, LENGTH) + _varint(len(spelled)) + spelled + score + _kind(kind))

    def protect(self, texts: Collection[str]) -> None:
        """Make these pieces control pieces, which no text is cut into; the unknown piece stays one."""
        for place, text in enumerate(self.texts):
            if text in texts and self.kinds[place] not in (CONTROL, UNKNOWN):
                self.kinds[place] = CONTROL
                self.bodies[place] += _kind(CONTROL)  # of a field that comes twice the last one counts

    def contents(self) -> bytes:
        """The bytes of the changed model."""
        tag = _tag(PIECE, LENGTH)
        return b"".join(tag + _varint(len(body)) + body for body in self.bodies) + self.rest


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, start of the whole field, start of its value, end."""
    place, size = 0, len(data)
    while place < size:
        start = place
        tag, place = _read_varint(data, place)
        wire, end = tag & 7, place
        if wire == LENGTH:
            length, place = _read_varint(data, place)
            end = place + length
        elif wire == VARINT:
            _, end = _read_varint(data, place)
        elif wire in (FOUR_BYTES, EIGHT_BYTES):
            end = place + (4 if wire == FOUR_BYTES else 8)
        else:
            raise ValueError(f"it has no known form at byte {start}")
        if end > size:
            raise ValueError(f"it ends within the field at byte {start}")
        yield tag >> 3, start, place, end
        place = end


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise ValueError("it ends within a number")


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _kind(kind: int) -> bytes:
    return _tag(KIND, VARINT) + _varint(kind)
