"""Sentencepiece tokenizers: ice_text.model and cog-pretrain.model, beside what the published code does."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import daybreak
from daybreak import families
from daybreak.errors import DaybreakError
from daybreak.text.stream import REPLACEMENT, Detokenizer
from daybreak.text.tokenizer import Tokenizer
from tests.unit.sentencepieces import COMMANDS, NORMAL, USER_DEFINED, Published, completed, trained, write

ICE, COG = "ice_text.model", "cog-pretrain.model"
CODE = "def f(x):\n\tif x:\n" + " " * 8 + "return '数据'  # 100 %\n" + " " * 100 + "x\n\n"
PARTS = [
    "你好，世界",
    "hello",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    CODE,
    "🙂",
    "👩‍👩‍👧",
    "e\u0301",
    "ﬁ！Ａ",
    "<",
    "n>",
    "\x00",
]
CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="▁")
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(CHARACTERS, max_size=8), max_size=12).map("".join)
CHAT = {  # tokenizer_config.json of the later releases
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "remove_space": False,
    "do_lower_case": False,
    "num_image_tokens": 0,
}


def loaded(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer is not None
    return tokenizer


@functools.cache
def ice(exact: bool = True, kind: str = "unigram", whole: bool = False, **config: Any) -> Tokenizer:
    """With the bare file of the first release, or a `whole` one."""
    model = trained(exact, kind)
    with tempfile.TemporaryDirectory() as folder:
        files = {"tokenizer_config": config} if config else {}
        return loaded(write(Path(folder), ICE, completed(model) if whole else model, **files))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@given(text=TEXTS)
@example(text=CODE)
@example(text=" \t  \n x ")
def test_every_text_comes_back(kind: str, text: str) -> None:
    tokenizer = ice(kind=kind)
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text.replace("<n>", "\n")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@given(text=TEXTS | st.text())
@example(text="<|blank_3|> <n> x")
def test_ids_and_texts_are_those_of_the_published_code(exact: bool, whole: bool, text: str) -> None:
    images = 0 if whole else 20_000
    theirs, ours = published(exact, images), ice(exact, whole=whole, num_image_tokens=images)
    text = text.encode("utf-8", errors="ignore").decode()
    ids = theirs.encode(text)
    assert ours.encode(text, special=False) == ids
    assert ours.decode(ids) == theirs.decode(ids)


@functools.cache
def published(exact: bool, images: int) -> Published:
    return Published(trained(exact), images)


def test_what_the_trainer_s_defaults_lose() -> None:
    tokenizer = ice(exact=False)
    for text, back in {
        "！ＡＢ": "!AB",
        "ﬁ": "fi",
        " x ": "x",
        "x\u3000y": "x y",
        "a▁b": "a b",
        "  x\n\ty ": "  x\n\ty",
    }.items():
        assert tokenizer.decode(tokenizer.encode(text)) == back


@pytest.mark.parametrize("whole", [True, False])
def test_ids_of_the_special_tokens(whole: bool) -> None:
    tokenizer, pieces = ice(whole=whole), len(Published(trained(True), 0).processor)
    first = 20_000 + pieces - 256 - 80 - len(COMMANDS)
    assert [tokenizer.special_id(text) for text in COMMANDS] == list(range(first, first + len(COMMANDS)))
    assert tokenizer.special_id("sop") == tokenizer.special_id("<sop>") == tokenizer.bos_id
    assert (tokenizer.eos_id, tokenizer.pad_id) == (tokenizer.special_id("<eop>"), 20_003)
    assert tokenizer.special_id("eos") == tokenizer.special_id("</s>") == 20_002
    assert tokenizer.special_id("hello") is None
    assert tokenizer.vocabulary == 20_000 + pieces
    without = ice(num_image_tokens=0)
    assert without.special_id("[gMASK]") == first + 1 - 20_000
    assert without.vocabulary == pieces


@pytest.mark.parametrize("family", ["chatglm", "glm_130b"])
def test_a_family_s_tokens_of_blanks_are_the_tokenizer_s(family: str, tmp_path: Path) -> None:
    tokenizer, spelled = ice(num_image_tokens=0), families.by_name(family).blank_tokens
    assert {*spelled} >= {"start", "end", "mask", "rest"}
    ids = {field: tokenizer.special_id(text) for field, text in spelled.items()}
    assert None not in ids.values()
    shape = {"vocabulary": tokenizer.vocabulary + 6, "layers": 1, "width": 16, "heads": 2, "inner": 32}
    blanks = dataclasses.replace(daybreak.create(family, **shape).architecture.blanks, **ids)
    model = daybreak.create(family, **shape, blanks=blanks)
    model.tokenizer = tokenizer
    model.save(tmp_path)
    back = daybreak.load(tmp_path)
    assert back.architecture.blanks == blanks
    assert back.tokenizer is not None
    assert back.tokenizer.files == tokenizer.files


def test_names_of_the_first_release_and_of_later_ones() -> None:
    early = ice(bos_token="sop", eos_token="</s>", mask_token="[MASK]")
    assert (early.bos_id, early.eos_id) == (early.special_id("<sop>"), 20_002)
    later = ice(**CHAT)
    assert (later.bos_id, later.eos_id) == (later.special_id("<sop>"), later.special_id("<eop>"))
    assert later.pad_id == 3
    assert not later.adds_bos
    assert ice(bos_token=None).bos_id is None


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
def test_special_tokens_in_a_text(kind: int, tmp_path: Path) -> None:
    """Whatever kind a release gives them: they are special where wanted, and text where not."""
    of_kind = loaded(write(tmp_path, ICE, completed(trained(True), commands=kind)))
    for tokenizer in (of_kind, ice(), ice(whole=True)):
        masks = [tokenizer.special_id(text) for text in ("[MASK]", "[gMASK]", "[sMASK]")]
        text = "故宫 [MASK] x[gMASK][sMASK]\n"
        parts = [tokenizer.encode(part) for part in ("故宫 ", " x", "\n")]
        assert tokenizer.encode(text) == [*parts[0], masks[0], *parts[1], masks[1], masks[2], *parts[2]]
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
        assert tokenizer.decode(tokenizer.encode(text)) == "故宫  x\n"
        plain = tokenizer.encode(text, special=False)
        assert not set(plain) & {*masks}
        assert tokenizer.decode(plain) == text
        assert tokenizer.encode("</s><s>", special=True) == tokenizer.encode("</s><s>", special=False)


def test_white_space_beside_tokens_that_are_named_by_their_text_alone() -> None:
    named, described = ice(mask_token="[MASK]"), ice_described()
    before = [*named.encode("a"), named.special_id("[MASK]")]
    assert named.encode("a \n[MASK] b") == [*before, *named.encode("b")]
    assert described.encode("a \n[MASK] b") == [*before, *named.encode(" b")]
    assert described.decode(described.encode("a [MASK] b"), skip_special=False) == "a[MASK] b"


def ice_described() -> Tokenizer:
    entry = {"content": "[MASK]", "lstrip": True, "rstrip": False}
    with tempfile.TemporaryDirectory() as folder:
        return loaded(write(Path(folder), ICE, trained(True), tokenizer_config={"mask_token": entry}))


def test_remove_space_and_lower_case() -> None:
    tokenizer = ice(remove_space=True, do_lower_case=True)
    assert tokenizer.encode(" Hello \n  World[MASK]X") == tokenizer.encode("hello world[MASK]x")


def test_ids_that_mean_nothing_decode_to_nothing() -> None:
    tokenizer = ice()
    assert tokenizer.decode([7, *tokenizer.encode("故宫"), 0, 10**9, -1, 20_002]) == "故宫"
    assert tokenizer.decode([20_002], skip_special=False) == "</s>"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("exact", [True, False])
@given(before=TEXTS, text=TEXTS)
@example(before="", text="🙂" * 3 + "数据" * 9)
def test_streaming_shows_whole_characters_and_the_whole_text(exact: bool, before: str, text: str) -> None:
    tokenizer = ice(exact)
    prompt, ids = tokenizer.encode(before + "[gMASK]<sop>"), tokenizer.encode(text, special=False)
    stream = Detokenizer(tokenizer, prompt)
    pieces = [*(stream.feed([number]) for number in ids), stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any(REPLACEMENT in piece for piece in pieces)


CHINESE = [
    *("<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNK]", "[UNUSED1]", "[UNUSED2]"),
    *("<|startofpiece|>", "<|endofpiece|>"),
]


def cog_files(folder: Path, *last: str, **config: Any) -> Path:
    """The special tokens' order is that of the release; their ids begin where the pieces end."""
    added = {text: 400 + place for place, text in enumerate((*CHINESE, *last))}
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "cls_token": "[CLS]", **config}
    return write(folder, COG, trained(False), added_tokens=added, tokenizer_config=named)


@pytest.mark.parametrize("last", [("[sMASK]", "[gMASK]"), ("[gMASK]", "[sMASK]")])
def test_ids_behind_the_pieces_are_those_of_the_file(last: tuple[str, str], tmp_path: Path) -> None:
    tokenizer = loaded(cog_files(tmp_path, *last))
    processor = Published(trained(False), 0).processor
    assert [tokenizer.special_id(text) for text in last] == [409, 410]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 400, 400)
    assert tokenizer.special_id("<|startofpiece|>") == 407
    assert tokenizer.vocabulary == 411
    ids = tokenizer.encode("北京故宫是中国[MASK]。")
    assert ids == [*processor.encode("北京故宫是中国"), 403, *processor.encode("。")]
    assert tokenizer.decode(ids, skip_special=False) == "北京故宫是中国[MASK]。"
    assert tokenizer.decode(tokenizer.encode("中[SEP]", special=False)) == "中[SEP]"


def test_the_chinese_models_leave_white_space_to_the_model(tmp_path: Path) -> None:
    tokenizer = loaded(cog_files(tmp_path))
    assert tokenizer.encode("a \n b") == tokenizer.encode("a b")
    assert tokenizer.decode(tokenizer.encode("a<n>b")) == "a<n>b"
    assert tokenizer.decode(tokenizer.encode("a🙂")) == "a ⁇ "


def test_a_special_token_that_begins_like_another(tmp_path: Path) -> None:
    tokenizer = loaded(
        write(tmp_path, COG, trained(False), added_tokens={"[X]": 400, "[X": 401, "[X]]": 402})
    )
    assert tokenizer.encode("[X]][X][X") == [402, 400, 401]


def test_the_piece_for_unknown_characters_as_a_special_token(tmp_path: Path) -> None:
    tokenizer, plain = loaded(cog_files(tmp_path / "named", unk_token="<unk>")), trained(False)
    assert tokenizer.special_id("<unk>") == 0
    ids = tokenizer.encode("a🙂")
    assert ids == [*loaded(write(tmp_path / "plain", COG, plain)).encode("a🙂")]
    assert ids[-1] == 0
    assert tokenizer.decode(ids) == "a"


@pytest.mark.parametrize("name", [ICE, COG])
def test_files_are_written_back_as_they_were(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "from", ICE, trained(False), tokenizer_config=CHAT)
    if name == COG:
        folder = cog_files(tmp_path / "other", "[sMASK]", "[gMASK]")
    tokenizer = loaded(folder)
    tokenizer.save(tmp_path / "to")
    assert {file.name: file.read_bytes() for file in (tmp_path / "to").iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }
    again = loaded(tmp_path / "to")
    assert again.encode(CODE + "[MASK]北京") == tokenizer.encode(CODE + "[MASK]北京")
    assert (again.vocabulary, again.eos_id) == (tokenizer.vocabulary, tokenizer.eos_id)


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        Tokenizer.load(folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [ICE, COG])
@given(kept=st.integers(0, len(trained(False)) - 1))
@example(kept=0)
def test_a_file_that_ends_early(name: str, kept: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        refused(
            write(Path(folder), name, trained(False)[:kept]), name, "not a sentencepiece model", "fetch it"
        )


@pytest.mark.parametrize(
    "contents",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        b"{}",
        b"\x0a\x02\x0a\x09",
        b"\x12\0\x1a\0",
        b"\0" * 99,
    ],
)
def test_a_file_that_is_no_model(contents: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path, ICE, contents), str(tmp_path / ICE), "not a sentencepiece model")


@pytest.mark.parametrize("images", [-1, "0", True, None])
def test_a_number_of_image_tokens_that_is_none(images: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, ICE, trained(False), tokenizer_config={"num_image_tokens": images})
    refused(folder, "tokenizer_config.json", "num_image_tokens", repr(images))


def test_named_tokens_that_are_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "ice", ICE, trained(False), tokenizer_config={"mask_token": "[BLANK]"})
    refused(folder, str(folder), "'[BLANK]'", ICE, "same checkpoint")
    folder = cog_files(tmp_path / "cog", mask_token="[BLANK]")
    refused(folder, str(folder), "'[BLANK]'", COG, "added_tokens.json", "same checkpoint")


def test_added_tokens_beside_the_complete_file(tmp_path: Path) -> None:
    """What transformers writes since 4.34: a description of every special token, of new ones too."""
    known = ice(whole=True, **CHAT)
    mask, new = known.special_id("[MASK]"), known.vocabulary
    described = {"lstrip": True, "rstrip": False, "special": True}
    decoder = {str(mask): {"content": "[MASK]", **described}, str(new): {"content": "<new>", **described}}
    config = {**CHAT, "added_tokens_decoder": decoder}
    folder = write(tmp_path, ICE, completed(trained(True)), tokenizer_config=config)
    tokenizer = loaded(folder)
    assert tokenizer.vocabulary == new + 1
    assert tokenizer.encode("a [MASK] b <new>") == [*known.encode("a"), mask, *known.encode(" b"), new]
    config["num_image_tokens"] = 20_000
    refused(
        write(tmp_path, ICE, completed(trained(True)), tokenizer_config=config), "'[MASK]'", f"the id {mask}"
    )


def test_added_tokens_that_stand_where_a_piece_stands(tmp_path: Path) -> None:
    added = {"[MASK]": 7}
    folder = write(tmp_path, COG, trained(False), added_tokens=added)
    refused(folder, "added_tokens.json", "'[MASK]'", "7", "same checkpoint")
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": 500, "[gMASK]": 500}))
    refused(folder, "'[gMASK]'", "'[MASK]'")
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": 500}))
    decoder = {"501": {"content": "[MASK]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    refused(folder, "tokenizer_config.json", "'[MASK]'", "501")
