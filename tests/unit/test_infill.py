"""Blanks are filled in order, each in the text in which those before it are filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

import daybreak
from daybreak import DaybreakError, LanguageModel, families
from daybreak.architecture import Blanks
from daybreak.engine.infill import Filled
from daybreak.engine.settings import Sampling
from daybreak.text.tokenizer import Tokenizer
from daybreak.text.train_tokenizer import train_tokenizer
from tests.unit.blank_models import FAMILIES, SHAPE, Script, model_of, tokenizer_of
from tests.unit.scripts import say
from tests.unit.sentencepieces import trained, write

CALM: dict[str, Any] = {"temperature": 0, "repetition_penalty": 3.0, "max_new_tokens": 5}
WORDS = ["The quick", " brown", "fox jumps ", "清华大学", "a + b\n", " ", ""]
MASKS = ["[MASK]", "[sMASK]"]


@st.composite
def texts_with_blanks(draw: st.DrawFn) -> str:
    parts = [draw(st.sampled_from(WORDS))]
    for _ in range(draw(st.integers(0, 3))):
        parts += [draw(st.sampled_from(MASKS)), draw(st.sampled_from(WORDS))]
    if len(parts) == 1 or draw(st.booleans()):
        parts.append("[gMASK]")
    return "".join(parts)


def plainly(model: LanguageModel, text: str) -> list[list[int]]:
    """The new tokens of every blank, without cache and batch: each time all is read anew."""
    tokenizer, blanks = model.tokenizer, model.architecture.blanks
    assert tokenizer is not None and blanks is not None
    end = tokenizer.special_id("<|endoftext|>")
    opening, closing = ([tokenizer.special_id("[CLS]")], [end]) if model.family.frame[0] else ([], [])
    tokens, found = tokenizer.encode(text), []
    never = [*blanks.masks, blanks.start, *opening]
    while masks := [place for place, token in enumerate(tokens) if token in blanks.masks]:
        going_on = tokens[-1] == blanks.rest and len(masks) > 1
        seen = tokens[:-1] if going_on else tokens + closing
        whole = [*opening, *seen, blanks.start]
        begin = len(whole)
        while len(whole) - begin < 5:
            logits = model.logits(torch.tensor([whole]))[0, -1, : tokenizer.vocabulary]
            chosen = torch.tensor(whole)
            logits[chosen] = torch.where(logits[chosen] > 0, logits[chosen] / 3.0, logits[chosen] * 3.0)
            logits[never] = -torch.inf
            whole.append(int(logits.argmax()))
            if whole[-1] in (blanks.end, end):
                break
        piece = whole[begin:]
        found.append(piece)
        kept = piece[:-1] if piece[-1] in (blanks.end, end) else piece
        tokens = [*tokens[: masks[0]], *kept, *tokens[masks[0] + 1 :]]
    return found


def pieces_of(result: Filled) -> list[list[int]]:
    return [blank.tokens for blank in result.blanks]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12)
@given(texts=st.lists(texts_with_blanks(), min_size=1, max_size=4))
def test_a_batch_with_a_cache_gives_what_reading_everything_anew_gives(family: str, texts: list[str]) -> None:
    model = model_of(family)
    results = model.infill(texts, **CALM)
    assert [result.prompt for result in results] == list(range(len(texts)))
    for text, result in zip(texts, results, strict=True):
        assert pieces_of(result) == plainly(model, text)
        assert result == _renumbered(model.infill(text, **CALM)[0], result.prompt)


def _renumbered(result: Filled, number: int) -> Filled:
    return Filled(result.text, result.blanks, result.tokens, number, result.sample)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12)
@given(text=texts_with_blanks(), seed=st.integers(0, 99), drops=st.booleans())
def test_what_is_given_stays_and_the_stream_gives_the_same(
    family: str, text: str, seed: int, drops: bool
) -> None:
    model = model_of(family, drops)
    chance: dict[str, Any] = {"temperature": 1.3, "seed": seed, "max_new_tokens": 6}
    result = model.infill(text, **chance)[0]
    beside = model.infill(["[MASK]", text], **chance, batch_size=1)[1]
    assert result == _renumbered(beside, 0)
    spelled = text
    for blank in result.blanks:
        assert blank.mask in spelled
        before, _, after = spelled.partition(blank.mask)
        assert not any(mask in before for mask in MASKS)
        spelled = before + blank.text + after
    assert spelled == result.text
    pieces = model.infill_stream(text, **chance)
    with pytest.raises(DaybreakError, match="not filled"):
        _ = pieces.result
    shown = list(pieces)
    assert "".join(piece.text for piece in shown) == result.text
    for number, blank in enumerate(result.blanks):
        assert "".join(piece.text for piece in shown if piece.blank == number) == blank.text
    assert pieces.result == result
    if not drops:  # then nothing is lost between text and ids, whole characters or not
        assert model.tokenizer is not None
        broken = "\ufffd" in result.text
        assert broken or model.tokenizer.decode(result.tokens) == result.text


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_differ_and_depend_on_nothing_else(family: str) -> None:
    model = model_of(family)
    chance: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_new_tokens": 8}
    both = model.infill(["one [MASK] two [sMASK]", "the [gMASK]"], n=3, **chance)
    assert [(result.prompt, result.sample) for result in both] == [(p, s) for p in range(2) for s in range(3)]
    assert len({result.text for result in both}) == 6
    alone = model.infill("the [gMASK]", n=2, **chance)
    assert [result.text for result in alone] == [result.text for result in both[3:5]]


# How a piece joins the text


@pytest.mark.parametrize(
    ("text", "piece", "drops", "filled"),
    [
        ("The [MASK] jumps", " brown fox", True, "The brown fox jumps"),
        ("The [MASK] jumps", " brown fox", False, "The  brown fox jumps"),
        ("The[MASK] jumps", " brown fox", True, "The brown fox jumps"),
        ("The [MASK] jumps", "brown fox", True, "The brown fox jumps"),
        ("[MASK] jumps", "The fox", True, "The fox jumps"),
        (" [MASK] jumps", " The", True, " The jumps"),
        ("清华[MASK]的模型", "大学训练", True, "清华大学训练的模型"),
        ("清华[MASK]", "大学\U0001f600", True, "清华大学\U0001f600"),
        ("def add([MASK]):\n    return a", "a, b", True, "def add(a, b):\n    return a"),
        ("def add(a, b):\n    [MASK]\n", "    return a + b", True, "def add(a, b):\n    return a + b\n"),
        ("def add(a, b):\n    [MASK]\n", "return a + b", False, "def add(a, b):\n    return a + b\n"),
        ("The[MASK].", "", True, "The."),
        ("The [MASK] jumps", "", True, "The  jumps"),
    ],
)
def test_pieces_join_the_text(
    text: str, piece: str, drops: bool, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("glm", drops)
    assert model.tokenizer is not None and model.architecture.blanks is not None
    script = [*model.tokenizer.encode(piece), model.architecture.blanks.end]
    say(monkeypatch, Script(script))
    result = model.infill(text, temperature=0)[0]
    assert result.text == filled
    assert result.blanks[0].tokens == script and result.blanks[0].finish_reason == "stop"
    assert result.blanks[0].text in (piece, piece.lstrip())
    say(monkeypatch, Script(script))
    assert "".join(piece.text for piece in model.infill_stream(text, temperature=0)) == filled


def with_tokenizer(tokenizer: Tokenizer, family: str) -> tuple[LanguageModel, Blanks]:
    """A model of the size of the tokenizer."""
    page = families.by_name(family)
    ids: dict[str, Any] = {role: tokenizer.special_id(text) for role, text in page.blank_tokens.items()}
    model = daybreak.create(
        family, **{**SHAPE, "layers": 1}, vocabulary=tokenizer.vocabulary, blanks=Blanks(**ids)
    )
    model.tokenizer = tokenizer
    return model, Blanks(**ids)


@pytest.mark.parametrize(
    ("text", "named", "piece", "filled"),
    [
        ("the quick [MASK] jumps", True, "brown fox", "the quick brown fox jumps"),
        ("the quick[MASK] jumps", True, "brown fox", "the quick brown fox jumps"),
        ("the quick[MASK] jumps", False, "brown fox", "the quick brown fox jumps"),
        ("the quick [MASK] jumps", False, "brown fox", "the quick  brown fox jumps"),
        ("the [MASK], over the dog", True, "fox", "the fox, over the dog"),
        ("if x:\n    [MASK]\n", True, "return 1", "if x:\n    return 1\n"),
        ("[MASK] jumps", False, "the fox", "the fox jumps"),
        ("北京 [MASK]。", True, "你好", "北京 你好。"),
    ],
)
def test_pieces_of_sentencepiece_models_join_the_text(
    text: str, named: bool, piece: str, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that the tokenizer's file names drops the white space beside it."""
    config = {"num_image_tokens": 0, **({"mask_token": "[MASK]"} if named else {})}
    loaded = Tokenizer.load(write(tmp_path, "ice_text.model", trained(True), tokenizer_config=config))
    assert loaded is not None
    model, blanks = with_tokenizer(loaded, "chatglm")
    written = [*loaded.encode(piece), blanks.end]  # it begins with the space that is put before every text
    for call in (lambda: model.infill(text, temperature=0)[0].text, lambda: _streamed(model)(text)):
        say(monkeypatch, Script(written, loaded.vocabulary))
        assert call() == filled
    say(monkeypatch, Script(written, loaded.vocabulary))
    assert model.generate("the", temperature=0)[0].text == piece


def test_a_word_piece_tokenizer_does_not_lower_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [*families.by_name("glm").blank_tokens.values(), "[CLS]", "[SEP]"]
    words = ["[UNK]", "trained", "by", ",", "2021", "tsing", "##hua", "in"]
    library = Library(
        models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in marks])
    model, blanks = with_tokenizer(Tokenizer(library), "glm")
    for call in (lambda text: model.infill(text, temperature=0)[0].text, _streamed(model)):
        written = [*Tokenizer(library).encode("tsinghua"), blanks.end]
        say(monkeypatch, Script(written, model.architecture.vocabulary))
        assert call("Trained by [MASK], in 2021") == "Trained by tsinghua, in 2021"


def test_a_character_that_is_never_finished_stays_in_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("glm")
    assert model.tokenizer is not None and model.architecture.blanks is not None
    half = model.tokenizer.encode("\U0001f600")[:-1]
    assert half
    for call in (lambda text: model.infill(text, temperature=0)[0].text, _streamed(model)):
        say(monkeypatch, Script([*half, model.architecture.blanks.end]))
        assert call("a[MASK]b") in ("a\ufffdb", "a\ufffd\ufffdb", "a\ufffd\ufffd\ufffdb")


def _streamed(model: LanguageModel) -> Any:
    return lambda text: "".join(piece.text for piece in model.infill_stream(text, temperature=0))


# Ends


def test_a_piece_ends_at_any_of_the_ends_and_is_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("glm")
    assert model.tokenizer is not None and model.architecture.blanks is not None
    word, blanks = model.tokenizer.encode("fox"), model.architecture.blanks
    closing = model.tokenizer.special_id("<|endoftext|>")
    assert closing is not None
    monkeypatch.setattr(model, "generation", {"eos_token_id": 5})  # besides the ends of pieces and texts
    for end, extra in ((blanks.end, {}), (closing, {}), (5, {}), (word[-1], {"stop_tokens": (word[-1],)})):
        say(monkeypatch, Script([*word[:-1], end]))
        result = model.infill("The [MASK].", temperature=0, **extra)[0]
        assert result.blanks[0].tokens == [*word[:-1], end]
        assert result.blanks[0].finish_reason == "stop"
        assert result.text == f"The {model.tokenizer.decode(word[:-1])}."
        assert end not in result.tokens[1:-1]
    monkeypatch.undo()
    past = model.infill("The [MASK].", ignore_eos=True, max_new_tokens=30, temperature=2.0, seed=1)[0]
    assert len(past.blanks[0].tokens) == 30
    assert not {blanks.end, closing, blanks.start, *blanks.masks} & {*past.blanks[0].tokens}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_that_are_only_read_are_never_written(family: str) -> None:
    model = model_of(family)
    assert model.tokenizer is not None and model.architecture.blanks is not None
    blanks = model.architecture.blanks
    never = {blanks.start, *blanks.masks}
    never |= {model.tokenizer.special_id("[CLS]")} if model.family.frame[0] else set()
    wild: dict[str, Any] = {"temperature": 50.0, "seed": 0, "max_new_tokens": 60, "ignore_eos": True}
    for results in (
        [result.tokens for result in model.generate(["a", "b"], n=8, **wild)],
        [result.blanks[0].tokens for result in model.infill(["a [MASK]"], n=8, **wild)],
    ):
        written = {token for tokens in results for token in tokens}
        assert len(written) > 150 and max(written) < model.tokenizer.vocabulary
        assert not written & never and blanks.end not in written


# A table of positions


def test_each_piece_has_the_whole_table_and_the_text_stays_within_it() -> None:
    model = model_of("glm", framed=False)
    long = "x" * 28
    result = model.infill(f"{long} [MASK] {long} [MASK]", ignore_eos=True, temperature=0)[0]
    first, last = result.blanks
    assert first.finish_reason == last.finish_reason == "length"
    assert model.tokenizer is not None
    given = len(model.tokenizer.encode(f"{long} [MASK] {long} [MASK]"))
    assert len(first.tokens) == 64 - given  # with its end the text of the second blank has 64 tokens
    assert len(last.tokens) == 64  # the last is not read back: 64 with the start of the piece


@pytest.mark.parametrize("length", [1, 63, 64])
def test_generation_uses_the_table_of_pieces_to_its_last_row(length: int) -> None:
    model = model_of("glm", framed=False)
    blanks = model.architecture.blanks
    assert blanks is not None
    ids = [5] * (length - 1) + [blanks.rest, blanks.start]
    assert len(model.generate([ids], max_new_tokens=80, ignore_eos=True)[0].tokens) == 64
    begun = [*ids, 7, 8, 9]
    assert len(model.generate([begun], max_new_tokens=80, ignore_eos=True)[0].tokens) == 61
    second = [blanks.mask, *ids[:-2], blanks.mask, blanks.start, 7, 7, 7, blanks.start, 8]
    one = [blanks.mask, *ids, 7, 7, blanks.start]  # a [gMASK] takes all: no second piece
    for prompt, room in ((second, 63), (one, 61)):
        if prompt.index(blanks.start) <= 64:
            assert len(model.generate([prompt], max_new_tokens=80, ignore_eos=True)[0].tokens) == room
    full = [*ids, *[7] * 63]
    assert len(model.generate([full], max_new_tokens=80, ignore_eos=True)[0].tokens) == 1


@pytest.mark.parametrize("length", [57, 58, 59, 60, 61, 62, 63, 64])
def test_a_text_that_fits_at_first_fits_to_its_end(length: int) -> None:
    model = model_of("glm")  # [CLS], the end of the text and the marks take their places, too
    text = "x" * length + "[MASK][gMASK]"
    if length + 3 <= 64:
        assert len(model.infill(text, max_new_tokens=9, ignore_eos=True)[0].blanks[0].tokens) == 61 - length
    else:
        with pytest.raises(DaybreakError, match=r"text 1 has 6\d tokens, but the model reads 64"):
            model.infill(text)


def test_rotated_positions_have_no_end() -> None:
    for family in ("glm_130b", "chatglm"):
        result = model_of(family).infill("x" * 60 + "[MASK] y [gMASK]", max_new_tokens=70, ignore_eos=True)[0]
        assert [len(blank.tokens) for blank in result.blanks] == [70, 70]


def test_what_is_too_long_is_said() -> None:
    model = model_of("glm", framed=False)
    blanks = model.architecture.blanks
    assert blanks is not None
    with pytest.raises(DaybreakError, match=r"text 2 has 6\d tokens, but the model reads 64"):
        model.infill(["a [MASK]", "x" * 64 + "[MASK]"])
    for ids in ([5] * 64 + [blanks.rest, blanks.start], [blanks.rest, blanks.start, *[7] * 64]):
        with pytest.raises(DaybreakError, match="prompt 1 has 66 tokens, but the model reads 64"):
            model.generate([ids])


# What generate makes of a text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_goes_on_in_a_blank_at_its_end(family: str) -> None:
    model = model_of(family)
    tokenizer, blanks = model.tokenizer, model.architecture.blanks
    assert tokenizer is not None and blanks is not None
    framed = bool(model.family.frame[0])
    first = [tokenizer.special_id("[CLS]")] if framed else []
    last = [tokenizer.special_id("<|endoftext|>")] if framed else []
    body = tokenizer.encode("The fox")
    tail = [blanks.rest, *last, blanks.start]
    masked = tokenizer.encode("The [MASK] fox")
    for prompt, ids in (
        ("The fox", [*first, *body, *tail]),
        ("The fox[gMASK]", [*first, *body, *tail]),
        ("The fox [gMASK]", [*first, *body, *tail]),
        ("", [*first, *tail]),
        ("The [MASK] fox", [*first, *masked, *tail]),  # a blank before the end stays one
    ):
        assert model.generate(prompt, max_new_tokens=1)[0].prompt_tokens == ids
    spelled = model.family.blank_tokens["start"]
    laid_out = model.generate(f"The [MASK] fox{spelled}", max_new_tokens=1)[0].prompt_tokens
    assert laid_out == [*masked, blanks.start]  # whoever writes the start has laid the text out
    if framed:
        assert model.generate("[CLS]The fox", max_new_tokens=1)[0].prompt_tokens == [*first, *body, *tail]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_in_a_batch_is_generation_alone(family: str) -> None:
    model = model_of(family)
    prompts = ["The quick", "a", "清华大学训练的模型", "def add(a, b):\n    return [gMASK]"]
    alone = [model.generate(prompt, **CALM)[0] for prompt in prompts]
    assert [result.tokens for result in model.generate(prompts, **CALM)] == [r.tokens for r in alone]
    for prompt, result in zip(prompts, alone, strict=True):
        pieces = model.stream(prompt, **CALM)
        assert "".join(pieces) == result.text == pieces.result.text
        whole = prompt if prompt.endswith("[gMASK]") else f"{prompt}[gMASK]"
        assert plainly(model, whole) == [result.tokens]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layout_of_one_s_own_may_have_several_pieces(family: str) -> None:
    """Masks that stay, and pieces behind each other, as in training."""
    model = model_of(family)
    blanks = model.architecture.blanks
    assert blanks is not None and model.tokenizer is not None
    begun = [5, blanks.mask, 6, blanks.mask, 7, blanks.start, 40, 41, blanks.start, 42]
    other = [9, 8, blanks.rest, blanks.start]
    found = [result.tokens for result in model.generate([begun, other], **CALM, ignore_eos=True)]
    for prompt, tokens in zip((begun, other), found, strict=True):
        whole = list(prompt)
        for token in tokens:
            logits = model.logits(torch.tensor([whole]))[0, -1, : model.tokenizer.vocabulary]
            seen = torch.tensor(whole)
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 3.0, logits[seen] * 3.0)
            never = [*blanks.masks, blanks.start, blanks.end, model.tokenizer.special_id("<|endoftext|>")]
            logits[
                [*never, model.tokenizer.special_id("[CLS]") if model.family.frame[0] else never[0]]
            ] = -torch.inf
            assert int(logits.argmax()) == token
            whole.append(token)


def test_the_answer_is_a_text_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some decoders take the space away with which a text begins."""
    model = model_of("chatglm")
    tokenizer = tokenizer_of("chatglm")

    class Stripping:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def decode(self, ids: Any) -> str:
            return tokenizer.decode(ids).removeprefix(" ")

    blanks = model.architecture.blanks
    assert blanks is not None
    monkeypatch.setattr(model, "tokenizer", Stripping())
    for prompt in ("The", [5, blanks.rest, blanks.start]):
        say(monkeypatch, Script([*tokenizer.encode(" brown"), blanks.end]))
        assert model.generate([prompt], temperature=0)[0].text == "brown"  # type: ignore[arg-type]
    say(monkeypatch, Script([*tokenizer.encode(" brown"), blanks.end]))
    assert model.infill("The[MASK]", temperature=0)[0].text == "The brown"


# What cannot be done


@pytest.mark.parametrize(
    ("texts", "settings", "named"),
    [
        ("no blank", {}, "text 1 has no blank; put one of [MASK], [gMASK], [sMASK]"),
        (["a [MASK]", "[mask]"], {}, "text 2 has no blank"),
        ("", {}, "text 1 has no blank"),
        ("[gMASK] a [gMASK]", {}, "text 1 has a [gMASK] before its end"),
        ("a [gMASK].", {}, "text 1 has a [gMASK] before its end"),
        ("a [MASK] <|startofpiece|>", {}, "text 1 has the token that starts or ends"),
        ("a <|endofpiece|> [MASK]", {}, "text 1 has the token that starts or ends"),
        ("a \ud800 [MASK]", {}, "text 1 is not UTF-8 text"),
        ([], {}, "there is no text"),
        (5, {}, "there is no text"),
        ([[5, 6]], {}, "there is no text"),
        (None, {}, "there is no text"),
        ("a [MASK]", {"stop": "."}, "stop is '.'"),
        ("a [MASK]", {"prompt_logprobs": 0}, "in both directions"),
        ("a [MASK]", {"batch_size": 0}, "batch_size is 0"),
        ("a [MASK]", {"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_what_cannot_be_filled_is_said(texts: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        model_of("glm").infill(texts, **settings)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "settings", "named"),
    [
        ("a [gMASK] b", {}, "prompt 1 has a [gMASK]"),
        ("[gMASK] a [gMASK]", {}, "prompt 1 has a [gMASK]"),
        ("a<|startofpiece|>", {}, "prompt 1 has the start token (id 290) but no blank before it"),
        ([[5, 6, 7]], {}, "prompt 1 has no start token (id 290)"),
        ([[]], {}, "prompt 1 has no start token"),
        ([[5, 290]], {}, "but no blank before it"),
        ([[5, 290, 293]], {}, "but no blank before it"),
        ([[293, 290, 400]], {}, "token id 400"),
        ("a\udfff", {}, "prompt 1 is not UTF-8 text"),
        ("a", {"prompt_logprobs": 1}, "leave prompt_logprobs out"),
    ],
)
def test_what_cannot_be_continued_is_said(prompt: Any, settings: dict[str, Any], named: str) -> None:
    model = model_of("glm")
    assert model.architecture.blanks is not None and model.architecture.blanks.start == 290
    with pytest.raises(DaybreakError) as caught:
        model.generate(prompt, **settings)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[MASK]", "a[MASK]", "[MASK]a", "<|start[MASK]ofpiece|>", "[[MASK]]", "[MASK][MASK]"]
)
def test_blanks_at_odd_places(text: str) -> None:
    result = model_of("glm").infill(text, **CALM)[0]
    assert len(result.blanks) == text.count("[MASK]")
    given = text.split("[MASK]")
    assert result.text.startswith(given[0]) and result.text.endswith(given[-1])


def test_models_that_cannot_fill_blanks_say_who_can() -> None:
    plain = daybreak.create("gpt2", vocabulary=290, **SHAPE)
    for call in (plain.infill, plain.infill_stream):
        with pytest.raises(DaybreakError, match="left to right only.*" + ", ".join(FAMILIES)):
            call("a [MASK]")
    fresh = daybreak.create("glm", vocabulary=290, **SHAPE)
    with pytest.raises(DaybreakError, match="no tokenizer"):
        fresh.infill("a [MASK]")
    fresh.tokenizer = train_tokenizer(["The fox. " * 9], 257)
    with pytest.raises(DaybreakError, match="no token for a blank"):
        fresh.infill("a [MASK]")
    with pytest.raises(DaybreakError, match="n is 2, but a stream is one text"):
        model_of("glm").infill_stream("a [MASK]", n=2)


def test_settings_and_progress() -> None:
    model = model_of("glm")
    calls: list[tuple[int, int]] = []
    texts = ["a [MASK] b [MASK]", "c [gMASK]"]
    results = model.infill(texts, Sampling(max_new_tokens=2, logprobs=1), progress=lambda *c: calls.append(c))
    assert calls[-1] == (3, 3)
    for result in results:
        for blank in result.blanks:
            assert blank.logprobs is not None and [e.token for e in blank.logprobs] == blank.tokens
    nothing = model.infill("a [MASK] b", max_new_tokens=0)[0]
    assert (nothing.text, nothing.blanks[0].finish_reason) == ("a  b", "length")
    assert families.by_name("glm").frame[0]  # the frame is part of what these tests hold
