"""The loop around the model: batches, ends, limits, log-probabilities, streams. (Its tokens:
tests/parity/test_greedy.py.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import daybreak
from daybreak import DaybreakError, LanguageModel, families
from daybreak.architecture import Alibi, Learned, Rotary
from daybreak.engine.generate import generate, stream
from daybreak.engine.settings import Sampling
from tests.unit.scripts import say

SHAPE: dict[str, Any] = {"vocabulary": 270, "context": 64, "layers": 2, "width": 40, "heads": 5, "inner": 72}
PROMPTS = ["a", "The quick brown fox", "", "中文 and more", "one two", "The quick brown fox jumps over"]


class Tokenizer:
    """Ids are bytes; `adds_bos` puts 1 in front."""

    bos_id, eos_id, pad_id, vocabulary = 1, 2, None, 256

    def __init__(self, adds_bos: bool = False) -> None:
        self.adds_bos = adds_bos

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        return [self.bos_id] * (self.adds_bos if bos is None else bos) + list(text.encode())

    def special_id(self, text: str) -> int | None:
        return {"<s>": 1, "</s>": 2}.get(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token > 2).decode("utf-8", errors="replace")


@cache
def model_of(family: str, seed: int = 0) -> LanguageModel:
    """A tiny model whose weights are large enough that its texts vary."""
    kind = families.by_name(family).base.positions
    changes = {"positions": Rotary(4, kind.pairs)} if isinstance(kind, Rotary) else {}
    windows = {"windows": (None, 5)} if families.by_name(family).base.windows != (None,) else {}
    model = daybreak.create(family, **SHAPE, **changes, **windows)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.4, generator=generator)
    model.tokenizer = Tokenizer()  # type: ignore[assignment]
    return model


def tokens_of(results: Sequence[Any]) -> list[list[int]]:
    return [result.tokens for result in results]


@pytest.mark.parametrize("family", families.NAMES)
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.3, "top_p": 0.95, "seed": 5}])
def test_a_batch_gives_what_single_calls_give(family: str, settings: dict[str, Any]) -> None:
    model = model_of(family)
    settings = {**settings, "max_new_tokens": 12, "repetition_penalty": 3.0, "ignore_eos": True}
    singles = [generate(model, prompt, **settings)[0].tokens for prompt in PROMPTS]
    assert len({token for text in singles for token in text}) > 10
    assert tokens_of(generate(model, PROMPTS, **settings)) == singles
    assert tokens_of(generate(model, PROMPTS[::-1], batch_size=4, **settings)) == singles[::-1]
    assert tokens_of(generate(model, PROMPTS, batch_size=1, **settings)) == singles


@pytest.mark.parametrize("family", ["gpt3", "gpt_neox", "bloom"])
def test_the_cache_gives_what_reading_everything_anew_gives(family: str) -> None:
    model = model_of(family)
    text = list(b"The quick")
    for _ in range(14):
        logits = model.logits(torch.tensor([text]))[0, -1, : Tokenizer.vocabulary]
        logits[text] = torch.where(logits[text] > 0, logits[text] / 2.0, logits[text] * 2.0)
        text.append(int(logits.argmax()))
    found = generate(model, "The quick", max_new_tokens=14, repetition_penalty=2.0, ignore_eos=True)
    assert found[0].tokens == text[9:]


def test_samples_are_streams_of_their_own() -> None:
    model = model_of("gpt2")
    settings: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.5, "ignore_eos": True}
    found = generate(model, ["ab", "cd", "ab"], n=4, seed=1, **settings)
    assert [(r.prompt, r.sample) for r in found] == [(p, s) for p in range(3) for s in range(4)]
    assert len({tuple(r.tokens) for r in found[:4]}) == 4
    assert tokens_of(found[:4]) == tokens_of(found[8:])  # the same prompt and seed, the same texts
    assert tokens_of(found[:2]) == tokens_of(generate(model, "ab", n=2, seed=1, batch_size=1, **settings))
    assert tokens_of(found[:1]) == tokens_of(generate(model, "ab", seed=1, **settings))
    assert tokens_of(found[:4]) != tokens_of(generate(model, "ab", n=4, seed=2, **settings))
    assert tokens_of(generate(model, "ab", **settings)) != tokens_of(generate(model, "ab", **settings))


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_what_is_suppressed_at_the_beginning_may_follow(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, lambda hidden: torch.zeros(len(hidden), 270).index_fill(1, torch.tensor([65]), 50.0))
    found = generate(
        model_of("gpt2"),
        "ab",
        begin_suppress_tokens=[65],
        temperature=temperature,
        seed=1,
        max_new_tokens=4,
        ignore_eos=True,
    )[0]
    assert found.tokens[0] != 65 and found.tokens[1:] == [65] * 3


def test_log_probabilities_are_the_model_s_own() -> None:
    model = model_of("gpt_neo")
    settings: dict[str, Any] = {"temperature": 0.3, "top_k": 4, "repetition_penalty": 1.5, "seed": 0}
    texts = ["The quick brown", "fox"]
    found = generate(
        model, texts, max_new_tokens=6, logprobs=3, prompt_logprobs=0, ignore_eos=True, **settings
    )
    for result in found:
        whole = torch.tensor([result.prompt_tokens + result.tokens])
        table = model.logits(whole)[0].log_softmax(-1)
        start = len(result.prompt_tokens)
        assert result.prompt_logprobs is not None and result.prompt_logprobs[0] is None
        for place, entry in enumerate([*result.prompt_logprobs, *(result.logprobs or [])][1:], 1):
            assert entry is not None and entry.token == whole[0, place]
            assert math.isclose(entry.logprob, float(table[place - 1, entry.token]), abs_tol=1e-4)
            assert len(entry.top) == (3 if place >= start else 0)
            if entry.top:
                best = table[place - 1, : Tokenizer.vocabulary].topk(3)
                torch.testing.assert_close(
                    Tensor([value for _, value in entry.top]), best.values, atol=1e-4, rtol=0
                )
                assert [token for token, _ in entry.top] == best.indices.tolist()


def test_a_greedy_token_has_exactly_the_highest_log_probability() -> None:
    """Harnesses ask whether a text is the greedy one by comparing these two numbers."""
    for result in generate(model_of("opt"), PROMPTS, max_new_tokens=5, logprobs=1, temperature=0):
        assert all(entry.top == ((entry.token, entry.logprob),) for entry in result.logprobs or [])


def test_scoring_a_prompt_writes_nothing() -> None:
    found = generate(model_of("bloom"), ["some text", "x"], max_new_tokens=0, prompt_logprobs=2)
    assert tokens_of(found) == [[], []]
    assert [len(result.prompt_logprobs or []) for result in found] == [9, 1]
    assert {result.finish_reason for result in found} == {"length"}


def test_long_prompts_are_scored_in_parts_without_a_seam() -> None:
    model = daybreak.create("bloom", **{**SHAPE, "context": 500})
    prompt = torch.randint(0, 270, (150,), generator=torch.Generator().manual_seed(0))
    entries = generate(model, [prompt.tolist()], max_new_tokens=0, prompt_logprobs=0)[0].prompt_logprobs
    table = model.logits(prompt[None])[0, :-1].log_softmax(-1).gather(1, prompt[1:, None])[:, 0]
    torch.testing.assert_close(Tensor([entry.logprob for entry in (entries or [])[1:] if entry]), table)


def test_rows_that_pad_the_table_are_never_chosen() -> None:
    model = daybreak.create("gpt_neox", **SHAPE, positions=Rotary(4))
    model.tokenizer = Tokenizer()  # type: ignore[assignment]
    with torch.no_grad():
        model.decoder.head.weight.zero_()
        model.decoder.final_norm.bias.fill_(1.0)
        model.decoder.head.weight[256:] = 1.0  # by far the highest logits
    for settings in ({"temperature": 0}, {"temperature": 2.0, "seed": 3, "n": 20}):
        for result in generate(model, "abc", max_new_tokens=8, logprobs=5, ignore_eos=True, **settings):
            assert max(result.tokens) < 256
            assert all(token < 256 for entry in result.logprobs or [] for token, _ in entry.top)
            # Of the model's own distribution, where those rows hold nearly everything.
            assert all(entry.logprob < -20 for entry in result.logprobs or [])
    model.tokenizer = None
    assert min(generate(model, [[5]], max_new_tokens=2)[0].tokens) >= 256


# Prompts


def test_a_token_that_texts_start_with_is_put_there_once() -> None:
    model = model_of("opt", seed=1)
    model.tokenizer = Tokenizer(adds_bos=True)  # type: ignore[assignment]
    found = generate(model, ["ab", "\x01ab", ""], max_new_tokens=1)
    assert [result.prompt_tokens for result in found] == [[1, 97, 98], [1, 97, 98], [1]]
    assert generate(model, [[97]], max_new_tokens=1)[0].prompt_tokens == [97]  # ids are taken as they are


def test_an_empty_prompt_needs_a_token_to_start_from() -> None:
    model = model_of("gpt2", seed=1)
    assert generate(model, "", max_new_tokens=1)[0].prompt_tokens == [1]
    model.generation = {"bos_token_id": 7}
    assert generate(model, [[]], max_new_tokens=1)[0].prompt_tokens == [7]
    first = daybreak.create("gpt", **SHAPE)
    with pytest.raises(DaybreakError, match="prompt is empty"):
        generate(first, [[]])
    with pytest.raises(DaybreakError, match="no prompt"):
        generate(first, [])


def test_prompts_in_every_form() -> None:
    model = model_of("gpt2")
    ids = list(b"ab")
    expected = generate(model, "ab", max_new_tokens=4)[0].tokens
    array = np.array(ids)
    forms: list[Any] = [["ab"], ids, [ids], torch.tensor(ids), torch.tensor([ids]), ("ab",)]
    forms += [
        [torch.tensor(ids)],
        list(torch.tensor(ids)),
        array,
        [array],
        list(array),
        array[None],
        tuple(ids),
    ]
    forms += [array.astype(np.uint8), np.array(["ab"])]
    for form in forms:
        assert tokens_of(generate(model, form, max_new_tokens=4)) == [expected]


@pytest.mark.parametrize(
    ("prompts", "settings", "named"),
    [
        ([[270]], {}, "token id 270; the model's go from 0 to 269"),
        ([[-1]], {}, "token id -1"),
        ([[5] * 65], {}, "prompt 1 has 65 tokens, but the model reads 64 at most"),
        ([3.0, 4], {}, "prompt 1 has 3.0 as entry 1; token ids are whole numbers"),
        ([[3], [4, 5.5]], {}, "prompt 2 has 5.5 as entry 2"),
        ([3, "a"], {}, "prompt 1 has 'a' as entry 2"),
        ([[3], ["4"]], {}, "prompt 2 has '4' as entry 1"),
        ([[[3]]], {}, "prompt 1 has [3] as entry 1"),
        (["a", 5], {}, "prompt 2 is 5; give a text"),
        (torch.tensor([1.0]), {}, "prompt 1 has 1.0 as entry 1"),
        (np.array([[1, 2], [3, 4.5]]), {}, "prompt 1 has 1.0 as entry 1"),
        ([None], {}, "prompt 1 has None as entry 1"),
        (5, {}, "the prompts are 5; give a text"),
        (torch.tensor(5), {}, "the prompts are 5"),
        (None, {}, "the prompts are None"),
        (b"text", {}, "the prompts are b'text'"),
        ([], {}, "there is no prompt"),
        ("text", {"temprature": 1}, "did you mean 'temperature'"),
        ("text", {"batch_size": 0}, "batch_size is 0"),
        ("text", {"max_length": 3}, "the prompt has 4 tokens and max_length is 3"),
    ],
)
def test_what_cannot_be_done_is_said(prompts: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        generate(model_of("gpt2"), prompts, **settings)
    assert named in str(caught.value)


def test_without_a_tokenizer_there_are_ids_only() -> None:
    model = daybreak.create("gpt2", **SHAPE)
    assert generate(model, [[3, 4]], max_new_tokens=3)[0].text == ""
    for call in (
        lambda: generate(model, "text"),
        lambda: generate(model, [[3]], stop="x"),
        lambda: stream(model, [3]),
    ):
        with pytest.raises(DaybreakError, match="tokenizer"):
            call()


# Ends


@pytest.mark.parametrize("prompt", [1, 50, 63, 64])
def test_a_table_of_positions_is_used_to_its_last_row_and_no_further(prompt: int) -> None:
    found = generate(model_of("gpt2"), [[9] * prompt, [9]], max_new_tokens=80, ignore_eos=True)
    assert [len(result.tokens) for result in found] == [65 - prompt, 64]
    assert found[0].finish_reason == "length"


def test_without_a_table_texts_may_outgrow_the_context() -> None:
    assert isinstance(model_of("bloom").architecture.positions, Alibi)
    found = generate(model_of("bloom"), [[9] * 60], max_new_tokens=20, ignore_eos=True)
    assert len(found[0].tokens) == 20


def test_end_of_text_ends_the_text_and_is_no_part_of_it() -> None:
    model = model_of("gpt2", seed=2)
    free = generate(model, "abc", max_new_tokens=12, repetition_penalty=2.0, ignore_eos=True)[0]
    end = free.tokens[5]
    assert end not in free.tokens[:5]
    for generation in ({"eos_token_id": end}, {"eos_token_id": [300, end]}):
        model.generation = generation
        found = generate(model, "abc", max_new_tokens=12, repetition_penalty=2.0)[0]
        assert found.tokens == free.tokens[:6] and found.finish_reason == "stop"
        assert found.text == model.tokenizer.decode(free.tokens[:5])  # type: ignore[union-attr]
        past = generate(model, "abc", max_new_tokens=12, repetition_penalty=2.0, ignore_eos=True)[0]
        assert past.tokens == free.tokens and past.finish_reason == "length"
        later = generate(model, "abc", max_new_tokens=12, repetition_penalty=2.0, min_new_tokens=8)[0]
        assert len(later.tokens) >= 8 and end not in later.tokens[:8]


class Script:
    """Makes a model write given texts, so that ends can be placed."""

    def __init__(self, model: LanguageModel, text: str) -> None:
        self.tokens, self.decoder = list(text.encode()), model.decoder

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], 270)
        logits[..., self.tokens.pop(0)] = 9.0
        return logits


@pytest.mark.parametrize(
    ("written", "stop", "text", "tokens"),
    [
        ("one\n\ntwo", ["\n\n"], "one", 5),
        ("one 😀 two", ["😀"], "one ", 8),
        ("Q: a Q:", ["Q:", "a Q"], "", 2),
        ("abcabd", ["abd"], "abc", 6),
    ],
)
def test_stop_strings(
    written: str, stop: list[str], text: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("gpt2")
    say(monkeypatch, Script(model, written))
    found = generate(model, "x", stop=stop, temperature=0)[0]
    assert (found.text, len(found.tokens), found.finish_reason) == (text, tokens, "stop")
    say(monkeypatch, Script(model, written))
    pieces = stream(model, "x", stop=stop, temperature=0)
    assert "".join(pieces) == text == pieces.result.text


def test_a_stop_string_is_text_until_enough_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    say(monkeypatch, Script(model, "ab.cd.ef"))
    assert generate(model, "x", stop=".", min_new_tokens=4, temperature=0)[0].text == "ab.cd"


@pytest.mark.parametrize("least", [0, 3])
def test_a_stop_string_may_be_a_special_token(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    settings: dict[str, Any] = {"stop": ["!", "</s>"], "ignore_eos": True, "temperature": 0}
    script = Script(model, "ab\x02cd")
    say(monkeypatch, script)
    found = generate(model, "x", max_new_tokens=5, min_new_tokens=least, **settings)[0]
    if least:  # like every end it may not come before enough is written
        assert found.tokens[2] != 2 and len(found.tokens) == 5
    else:
        assert (found.text, found.tokens, found.finish_reason) == ("ab", [97, 98, 2], "stop")
    say(monkeypatch, Script(model, "ab\x02cd"))
    past = generate(model, "x", max_new_tokens=5, ignore_eos=True, stop="<|s|>", temperature=0)[0]
    assert past.tokens == list(b"ab\x02cd")


# The rest


def test_a_stream_gives_the_text_that_generate_gives() -> None:
    model = model_of("gpt_j")
    for settings in (
        {"temperature": 0},
        {"temperature": 1.0, "seed": 4},
        {"top_k": 5, "seed": 2, "stop": "e"},
    ):
        whole = generate(model, "The ", max_new_tokens=25, logprobs=1, **settings)[0]
        pieces = stream(model, "The ", max_new_tokens=25, logprobs=1, **settings)
        with pytest.raises(DaybreakError, match="not finished"):
            _ = pieces.result
        assert "".join(list(pieces)) == whole.text
        assert pieces.result == whole


def test_a_reader_may_leave_and_its_gradients_stay_as_they_are() -> None:
    model = model_of("gpt2")
    for _ in stream(model, "The ", max_new_tokens=25, temperature=0):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        break


def test_training_mode_changes_nothing_and_stays() -> None:
    model = model_of("gpt_neox")
    calm = tokens_of(generate(model, "abc", max_new_tokens=5))
    model.decoder.train()
    assert tokens_of(generate(model, "abc", max_new_tokens=5)) == calm
    assert model.decoder.training
    model.decoder.eval()


@pytest.mark.parametrize("family", families.NAMES)
def test_in_bfloat16(family: str) -> None:
    kind = families.by_name(family).base.positions
    changes = {} if not isinstance(kind, Rotary) else {"positions": Rotary(4, kind.pairs)}
    model = daybreak.create(family, **SHAPE, **changes, dtype="bfloat16")
    model.decoder.load_state_dict({k: v.bfloat16() for k, v in model_of(family).decoder.state_dict().items()})
    prompts = [[5, 6, 7], [8]]
    blanks = model.architecture.blanks
    if blanks is not None:
        prompts = [[*prompt, blanks.rest, blanks.start] for prompt in prompts]
    found = generate(model, prompts, max_new_tokens=8, logprobs=1, ignore_eos=True)
    for result, prompt in zip(found, prompts, strict=True):
        table = model.logits(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        assert result.logprobs is not None
        assert abs(result.logprobs[0].logprob - float(table.max())) < 0.1
        assert len(result.tokens) == 8


def test_broken_models_say_so() -> None:
    model = daybreak.create("gpt2", **SHAPE)
    with torch.no_grad():
        model.decoder.final_norm.weight[0] = math.nan
    with pytest.raises(DaybreakError, match="not finite"):
        generate(model, [[3]])
    healthy = daybreak.create("gpt2", **SHAPE)
    for settings in ({"temperature": 0}, {"temperature": 1.0}):
        with pytest.raises(DaybreakError, match="every token is suppressed"):
            generate(healthy, [[3]], suppress_tokens=range(270), **settings)


def test_defaults_of_the_checkpoint() -> None:
    model = model_of("gpt2", seed=3)
    model.generation = {"max_new_tokens": 3, "do_sample": True, "temperature": 1.0, "num_beams": 1}
    sampled = {tuple(generate(model, "a", ignore_eos=True)[0].tokens) for _ in range(6)}
    assert len(sampled) > 1 and {len(tokens) for tokens in sampled} == {3}
    assert len(generate(model, "a", defaults=False, ignore_eos=True)[0].tokens) == 64
    assert len(generate(model, "a", Sampling(max_new_tokens=2), ignore_eos=True)[0].tokens) == 2
    model.generation = {"num_beams": 3}
    with pytest.raises(DaybreakError, match="num_beams = 3"):
        generate(model, "a")
    assert generate(model, "a", defaults=False, max_new_tokens=1)[0].tokens


def test_a_presence_penalty_brings_new_tokens() -> None:
    model = model_of("gpt2")
    calm = generate(model, "a", max_new_tokens=15, ignore_eos=True)[0].tokens
    for penalty in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        found = generate(model, "a", max_new_tokens=15, ignore_eos=True, **penalty)[0].tokens
        assert len(set(found)) == 15 > len(set(calm))


def test_progress_counts_finished_texts() -> None:
    calls: list[tuple[int, int]] = []
    generate(model_of("gpt2"), PROMPTS, max_new_tokens=3, batch_size=4, progress=lambda *c: calls.append(c))
    assert calls[-1] == (6, 6) and [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_shapes_are_what_the_tests_mean() -> None:
    assert isinstance(model_of("gpt2").architecture.positions, Learned)
    assert model_of("gpt3").architecture.windows == (None, 5)
