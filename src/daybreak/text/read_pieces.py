"""Sentencepiece tokenizers from their files: ice_text.model (GLM-130B, ChatGLM) and cog-pretrain.model (the
Chinese GLM models), with the special tokens that stand beside their pieces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from daybreak.errors import DaybreakError
from daybreak.text.added_tokens import Added, from_config, from_list
from daybreak.text.named import ADDED, CONFIG, Beside, special_tokens
from daybreak.text.piece_model import BYTE, BYTE_FALLBACK, CONTROL, USER_DEFINED, PieceModel
from daybreak.text.pieces import Pieces, Special

ICE, COG = "ice_text.model", "cog-pretrain.model"
COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
NAMES = {"sop": "<sop>", "eop": "<eop>", "eod": "<eod>", "eos": "</s>", "ENC": "<ENC>", "dBLOCK": "<dBLOCK>"}
"""How GLM-130B's code calls the tokens that it never writes in a text."""
ICE_ROLES = {"bos": "<sop>", "eos": "<eop>", "pad": "<pad>", "unk": "<unk>", "mask": "[MASK]"}
COG_ROLES = {"eos": "<|endoftext|>", "pad": "<|endoftext|>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
LINE_BREAK, TAB, BLANK, LONGEST_BLANK = "<n>", "<|tab|>", "<|blank_{}|>", 80
IMAGE_TOKENS = 20_000
"""Ids before the first piece, of image tokens that no model of text uses; later releases have none."""


def read_pieces(beside: Beside) -> tuple[Pieces, dict[str, str]] | None:
    """The backend, and the special tokens by role where the files name none; None without a file.

    Raises `DaybreakError` for files that cannot be understood, or do not belong together.
    """
    name = next((name for name in (ICE, COG) if name in beside.files), None)
    if name is None:
        return None
    try:
        model = PieceModel.read(beside.files[name])
    except ValueError as error:
        raise _damaged(beside.folder / name, error) from None
    read = _ice if name == ICE else _cog
    try:
        return read(beside, model)
    except RuntimeError as error:  # the library's, for a file whose parts do not make a model
        raise _damaged(beside.folder / name, error) from None


def _damaged(file: Path, error: Exception) -> DaybreakError:
    return DaybreakError(f"{file} is not a sentencepiece model: {error}; fetch it again")


def _ice(beside: Beside, model: PieceModel) -> tuple[Pieces, dict[str, str]]:
    """As icetk and the first ChatGLM complete the file, or as later releases have it complete.

    Sources: SwissArmyTransformer's icetk_glm_130B/ice_tokenizer.py, ChatGLM-6B's tokenization_chatglm.py.
    """
    first = beside.config.get("num_image_tokens", IMAGE_TOKENS)
    if type(first) is not int or first < 0:
        raise DaybreakError(
            f"{beside.folder / CONFIG}: num_image_tokens is {first!r}; it must be a number of ids"
        )
    if COMMANDS[0] not in model.texts:
        _complete(model)
    places = {text: first + place for place, text in enumerate(model.texts)}
    known = {*COMMANDS, *ICE_ROLES.values()} & places.keys()
    specials = {text: Special(places[text]) for text in known}
    specials |= _special(beside, ICE, places)
    white = {LINE_BREAK: "\n", TAB: "\t"}
    white |= {BLANK.format(length): " " * length for length in range(2, LONGEST_BLANK + 1)}
    remove, lower = (bool(beside.config.get(key)) for key in ("remove_space", "do_lower_case"))
    prepare = _preparation(remove, lower)
    pieces = Pieces(model, specials, first_id=first, white=white, prepare=prepare, names=NAMES)
    return pieces, ICE_ROLES


def _complete(model: PieceModel) -> None:
    """The pieces that icetk's file lacks: commands, white space, and bytes for unknown characters."""
    for text in COMMANDS:
        model.append(text, CONTROL)
    for text in (TAB, *map(BLANK.format, range(2, LONGEST_BLANK + 1))):
        model.append(text, USER_DEFINED)
    for byte in range(256):
        model.append(f"<0x{byte:02X}>", BYTE)
    model.rest += BYTE_FALLBACK


def _preparation(remove_space: bool, lower_case: bool) -> Callable[[str], str]:
    def prepare(text: str) -> str:
        text = " ".join(text.split()) if remove_space else text
        text = text.lower() if lower_case else text
        text = text.replace("\n", LINE_BREAK).replace("\t", TAB)
        return re.sub(f" {{2,{LONGEST_BLANK}}}", lambda run: BLANK.format(len(run[0])), text)

    return prepare


def _cog(beside: Beside, model: PieceModel) -> tuple[Pieces, dict[str, str]]:
    """Special tokens have ids behind the pieces; which, only the files beside it say. White space is left to
    the model (tokenization_glm.py of the Chinese models)."""
    places = {text: place for place, text in enumerate(model.texts)}
    specials = _special(beside, COG, places)
    return Pieces(model, specials), {role: text for role, text in COG_ROLES.items() if text in specials}


def _special(beside: Beside, model: str, places: Mapping[str, int]) -> dict[str, Special]:
    """The special tokens that the JSON files list or name; `places`: the ids of the model's pieces."""
    folder = beside.folder
    listed = from_list(folder / ADDED, beside.added())
    described = from_config(folder / CONFIG, beside.config)
    entries = {NAMES.get(text, text): entry for text, entry in special_tokens(beside.named).items()}
    ids = dict(places)
    specials: dict[str, Special] = {}
    for token in (*listed, *described):
        _take(token, ids)
        specials[token.text] = _described(token.id, token.flags or entries.get(token.text))
    for text in entries.keys() - specials.keys():
        if text not in places:
            raise DaybreakError(
                f"{folder}: {CONFIG} names the special token {text!r}, which neither {model} nor {ADDED} has"
                "; take all of the tokenizer's files from the same checkpoint"
            )
        specials[text] = _described(places[text], entries[text])
    return specials


def _take(token: Added, ids: dict[str, int]) -> None:
    """Enter a token among the ids by text: no two tokens have one id, and no token has two."""
    other = next((text for text, number in ids.items() if number == token.id and text != token.text), None)
    if other is not None or ids.setdefault(token.text, token.id) != token.id:
        found = f"that is the id of {other!r}" if other is not None else f"it is {ids[token.text]}"
        raise DaybreakError(
            f"{token.file} gives the token {token.text!r} the id {token.id}, but beside this vocabulary "
            f"{found}; take all of the tokenizer's files from the same checkpoint"
        )


def _described(number: int, entry: Any) -> Special:
    """A token named by its text alone drops the white space beside it, as with transformers' slow tokenizers
    of the time (4.27, PreTrainedTokenizer.tokenize); a description says itself what is dropped."""
    if isinstance(entry, Mapping):
        left, right = bool(entry.get("lstrip")), bool(entry.get("rstrip"))
        return Special(number, drops_left=left, drops_right=right)
    named = entry is not None
    return Special(number, drops_left=named, drops_right=named)
