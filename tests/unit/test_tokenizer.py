"""Tokenizers from every kind of file, id for id beside transformers' fast ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

import daybreak
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer

CORPUS = Path(json.__file__).read_text() + Path(__file__).read_text()
STRINGS = [
    "",
    " ",
    "\n\n\t x",
    "Hello world",
    " Hello  world ",
    "def f(x):\n    return x + 1\n",
    "It's we'll THEY'RE don't",
    "naïve café ÀÉÎ ﬁ ß",
    "数据 模型，你好。",
    "🙂 👩‍👩‍👧 e\u0301",
    "\u200b\u00a0\u2028 \x00\x07",
    "1234567890 3.14e-10 $%&",
    "<|endoftext|>a<|endoftext|>",
    "</s><pad>x</s>",
    "a</w> <unk> [CLS]",
    "<|extratoken_1|> <|extratoken_2|>",
    "a" * 300,
]


def byte_level(folder: Path, *special: str, **config: Any) -> Path:
    """vocab.json and merges.txt as GPT-2's, trained on a page of text."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([CORPUS], trainer)
    folder.mkdir()
    backend.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def gpt2_files(folder: Path) -> Path:
    return byte_level(folder, "<|endoftext|>", tokenizer_class="GPT2Tokenizer")


def gpt_j_files(folder: Path) -> Path:
    gpt2_files(folder)
    count = len(json.loads((folder / "vocab.json").read_text()))
    added = {f"<|extratoken_{k}|>": count + k - 1 for k in range(1, 4)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def opt_files(folder: Path) -> Path:
    end = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False}
    return byte_level(
        folder,
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        tokenizer_class="GPT2Tokenizer",
        add_bos_token=True,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token="<pad>",
    )


def gpt_files(folder: Path) -> Path:
    """vocab.json and merges.txt as the first GPT's: lower case, ends of words marked."""
    backend = Backend(BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator([CORPUS], trainer)
    folder.mkdir()
    backend.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "OpenAIGPTTokenizer"}')
    return folder


def neox_files(folder: Path) -> Path:
    """One tokenizer.json with a normaliser and added runs of spaces, as GPT-NeoX's."""
    backend = Backend(BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    backend.add_tokens([AddedToken(" " * k, normalized=True) for k in (4, 3, 2)])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def template_files(folder: Path) -> Path:
    """A tokenizer.json that puts a token in front and cuts texts; special_tokens_map.json names it."""
    neox_files(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.enable_truncation(5)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    special = {"bos_token": "<|endoftext|>", "pad_token": {"content": "<|padding|>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "gpt2": gpt2_files,
    "gpt_j": gpt_j_files,
    "opt": opt_files,
    "gpt": gpt_files,
    "neox": neox_files,
}


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    from transformers import AutoTokenizer

    folder = KINDS[request.param](tmp_path_factory.mktemp("tokenizer") / request.param)
    ours = Tokenizer.load(folder)
    assert ours is not None
    return AutoTokenizer.from_pretrained(folder, use_fast=True), ours


@pytest.mark.parametrize("text", STRINGS, ids=range(len(STRINGS)))
def test_ids_and_texts_are_those_of_transformers(both: tuple[Any, Tokenizer], text: str) -> None:
    theirs, ours = both
    expected = theirs(text)["input_ids"]
    assert ours.encode(text) == expected
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    whole = theirs.decode(expected, skip_special_tokens=False)
    assert ours.decode(expected, skip_special=False) == whole


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30))
def test_any_text_has_the_ids_of_transformers(both: tuple[Any, Tokenizer], text: str) -> None:
    theirs, ours = both
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_special_tokens_are_those_of_transformers(both: tuple[Any, Tokenizer]) -> None:
    theirs, ours = both
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocabulary == len(theirs)


def test_opt_starts_with_its_end_of_text_exactly_once(tmp_path: Path) -> None:
    ours = Tokenizer.load(opt_files(tmp_path / "opt"))
    assert ours is not None
    assert ours.encode("x").count(2) == 1 and ours.encode("x")[0] == 2
    assert ours.encode("x", bos=True) == ours.encode("x")
    assert ours.encode("x", bos=False) == ours.encode("x")[1:]


def test_the_family_s_habit_holds_where_the_files_say_nothing(tmp_path: Path) -> None:
    folder = opt_files(tmp_path / "opt")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    plain, habit = Tokenizer.load(folder), Tokenizer.load(folder, starts_with_bos=True)
    assert plain is not None and habit is not None
    assert habit.encode("x") == [2, *plain.encode("x")]


def test_a_template_and_truncation_in_the_file(tmp_path: Path) -> None:
    ours = Tokenizer.load(template_files(tmp_path / "template"))
    assert ours is not None
    assert ours.encode("a b c d e f g h")[0] == 0
    assert len(ours.encode("a b c d e f g h")) > 8
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 0, 1)


def test_bytes_that_are_no_character(tmp_path: Path) -> None:
    ours = Tokenizer.load(gpt2_files(tmp_path / "gpt2"))
    assert ours is not None
    ids = ours.encode("€")
    assert len(ids) == 3
    assert "\ufffd" in ours.decode(ids[:2])
    assert ours.decode(ids) == "€"


@pytest.mark.parametrize("kind", [*KINDS, "template"])
def test_files_are_written_back_as_they_were(kind: str, tmp_path: Path) -> None:
    folder = {**KINDS, "template": template_files}[kind](tmp_path / "from")
    ours = Tokenizer.load(folder)
    assert ours is not None
    ours.save(tmp_path / "to")
    assert {file.name: file.read_bytes() for file in (tmp_path / "to").iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }


def test_a_model_carries_its_tokenizer(tmp_path: Path) -> None:
    folder = opt_files(tmp_path / "model")
    shape = {"vocabulary": 520, "context": 16, "layers": 1, "width": 12, "heads": 2, "inner": 48}
    model = daybreak.create("opt", **shape)
    model.tokenizer = Tokenizer.load(folder)
    model.save(folder)
    back = daybreak.load(folder)
    assert back.tokenizer is not None
    assert back.tokenizer.encode("Hello") == model.tokenizer.encode("Hello")
    config = json.loads((folder / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (2, 2, 1)


def test_a_fresh_tokenizer_is_saved_for_transformers_too(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    backend = Backend.from_file(str(neox_files(tmp_path / "neox") / "tokenizer.json"))
    fresh = Tokenizer(backend, bos="<|endoftext|>", eos="<|endoftext|>", pad="<|padding|>", adds_bos=False)
    fresh.save(tmp_path / "fresh")
    ours, theirs = Tokenizer.load(tmp_path / "fresh"), AutoTokenizer.from_pretrained(tmp_path / "fresh")
    assert ours is not None
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 0, 1)
    for text in STRINGS:
        assert fresh.encode(text) == ours.encode(text) == theirs(text)["input_ids"]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.load(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert Tokenizer.load(tmp_path) is None


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        Tokenizer.load(folder)
    for part in parts:
        assert part in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    folder = gpt2_files(tmp_path / "gpt2")
    merges = (folder / "merges.txt").read_text()
    (folder / "merges.txt").write_text(merges + "a b c\n")
    refused(folder, "merges.txt", f"line {len(merges.splitlines()) + 1}", "'a b c'")
    (folder / "merges.txt").write_text(merges + "qq zz\n")
    refused(folder, "do not belong together")
    (folder / "vocab.json").write_text("{")
    refused(folder, str(folder / "vocab.json"), "not valid JSON")
    (folder / "tokenizer_config.json").write_text("[]")
    refused(folder, "tokenizer_config.json", "list")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    refused(folder, str(folder / "tokenizer.json"), "not a tokenizer")


def test_special_tokens_by_their_text(tmp_path: Path) -> None:
    ours = Tokenizer.load(opt_files(tmp_path / "opt"))
    assert ours is not None
    assert [ours.special_id(text) for text in ("</s>", "<pad>", "</s", "a", "")] == [2, 1, None, None, None]
    runs = Tokenizer.load(neox_files(tmp_path / "neox"))
    assert runs is not None
    assert runs.special_id("<|endoftext|>") == 0
    assert runs.special_id("  ") is None  # added, but texts show it


def test_added_tokens_whose_ids_do_not_follow_the_vocabulary(tmp_path: Path) -> None:
    folder = gpt_j_files(tmp_path / "gpt_j")
    added = json.loads((folder / "added_tokens.json").read_text())
    first = min(added.values())
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 1000}))
    refused(folder, str(folder / "added_tokens.json"), "'<pad>'", "1000", f"it is {first}", "same checkpoint")
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": first, "<b>": first}))
    refused(folder, "added_tokens.json", "'<b>'", str(first), f"it is {first + 1}")
    (folder / "added_tokens.json").write_text(json.dumps({"<a>": first}))
    decoder = {str(first): {"content": "<b>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    refused(folder, "tokenizer_config.json", "'<b>'", str(first), f"it is {first + 1}")


def test_added_tokens_of_which_the_whole_tokenizer_says_something_else(tmp_path: Path) -> None:
    folder = neox_files(tmp_path / "neox")
    (folder / "added_tokens.json").write_text(json.dumps({"<|padding|>": 7}))
    refused(folder, "added_tokens.json", "'<|padding|>'", "the id 7", "it is 1")
    (folder / "added_tokens.json").write_text(json.dumps({"<|padding|>": 1}))
    assert Tokenizer.load(folder) is not None


@pytest.mark.parametrize("text", ['{"<pad>": "300"}', '{"<pad>": -1}', '{"<pad>": {"id": 300}}', '{"": 300}'])
def test_added_tokens_that_are_none(text: str, tmp_path: Path) -> None:
    folder = gpt2_files(tmp_path / "gpt2")
    (folder / "added_tokens.json").write_text(text)
    refused(folder, str(folder / "added_tokens.json"), "fetch the file again")


@pytest.mark.parametrize(
    "decoder",
    [["<pad>"], {"x": {"content": "<pad>"}}, {"300": "<pad>"}, {"300": {}}, {"300": {"content": 1}}],
)
def test_a_decoder_of_added_tokens_that_is_none(decoder: Any, tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "gpt2", added_tokens_decoder=decoder)
    refused(folder, str(folder / "tokenizer_config.json"), "added_tokens_decoder", "fetch the file again")


def test_a_whole_tokenizer_alone_ends_texts_as_the_merges_do(tmp_path: Path) -> None:
    folder = neox_files(tmp_path / "neox")
    (folder / "tokenizer_config.json").unlink()
    ours = Tokenizer.load(folder)
    assert ours is not None
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 0, None)
    (folder / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "<|padding|>"}')
    named = Tokenizer.load(folder)
    assert named is not None
    assert (named.bos_id, named.eos_id) == (None, 1)


def test_a_fresh_tokenizer_without_ends_comes_back_without(tmp_path: Path) -> None:
    backend = Backend.from_file(str(neox_files(tmp_path / "neox") / "tokenizer.json"))
    Tokenizer(backend).save(tmp_path / "fresh")
    back = Tokenizer.load(tmp_path / "fresh")
    assert back is not None
    assert (back.bos_id, back.eos_id, back.pad_id) == (None, None, None)


def test_bos_that_does_not_exist(tmp_path: Path) -> None:
    ours = Tokenizer.load(gpt_files(tmp_path / "gpt"))
    assert ours is not None
    with pytest.raises(DaybreakError, match="no bos token"):
        ours.encode("x", bos=True)


def test_names_of_openai_s_own_releases(tmp_path: Path) -> None:
    folder = gpt_files(tmp_path / "gpt")
    today = Tokenizer.load(folder)
    (folder / "vocab.json").rename(folder / "encoder_bpe_40000.json")
    (folder / "merges.txt").rename(folder / "vocab_40000.bpe")
    ours = Tokenizer.load(folder)
    assert today is not None and ours is not None
    assert ours.encode("Hello World") == today.encode("Hello World")
    assert ours.files == today.files
