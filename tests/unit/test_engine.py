"""The engine: what a text becomes depends neither on what else is written nor on how much memory there is."""

from __future__ import annotations

import mmap
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import daybreak
from daybreak import LanguageModel
from daybreak.architecture import Blanks, Rotary
from daybreak.compare.redraw import redraw
from daybreak.engine.continuation import Continuation, Result
from daybreak.engine.engine import Engine, EngineSettings, write
from daybreak.engine.generate import generate
from daybreak.engine.kernels.build import library
from daybreak.engine.logprobs import of_tokens
from daybreak.engine.pages import PAGE, Block, PageLayout, Pages, PageTable, keys_of
from daybreak.engine.prompts import Prompt
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError

SHAPE: dict[str, Any] = {"vocabulary": 211, "context": 256, "layers": 2, "width": 48, "heads": 4, "inner": 80}
FAMILIES = ["gpt2", "gpt_neo", "gpt_j", "gpt_neox", "bloom", "opt", "gpt", "llama"]
COMPILED = pytest.mark.skipif(library().functions is None, reason=library().about)


ROTARY = {"gpt_j": Rotary(8, "neighbours"), "gpt_neox": Rotary(4), "llama": Rotary(12)}


def model_of(family: str, **changes: Any) -> LanguageModel:
    rotary = {"positions": ROTARY[family]} if family in ROTARY else {}
    model = daybreak.create(family, **{**SHAPE, **rotary, **changes})
    redraw(model.decoder, 11)
    return model


def text(tokens: Sequence[int], index: int = 0, **given: Any) -> Continuation:
    sampling = Sampling(**{"max_new_tokens": 20, "ignore_eos": True, **given})
    return Continuation(
        Prompt(index, tuple(tokens), False), 0, sampling.room(len(tokens)), sampling, frozenset(), None, False
    )


def tokens_of(seed: int, length: int) -> list[int]:
    return [random.Random(seed * 1000 + place).randrange(211) for place in range(length)]


def mixed(count: int) -> list[Continuation]:
    """Prompts of all lengths, some that start alike, in every manner of choosing."""
    manners: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 1.2, "top_k": 20, "repetition_penalty": 1.3},
        {"temperature": 0, "presence_penalty": 0.5, "logprobs": 2},
        {"temperature": 0.7, "min_p": 0.05, "prompt_logprobs": 1},
    ]
    shared = tokens_of(99, 70)
    found = []
    for number in range(count):
        own = tokens_of(number, 1 + number * 7 % 90)
        tokens = shared[: 10 * (number % 8)] + own
        new = 5 + number * 3 % 40
        found.append(text(tokens, number, max_new_tokens=new, **manners[number % len(manners)]))
    return found


def outcome(engine: Engine, texts: Sequence[Continuation], seed: int = 5) -> list[Result]:
    for _ in write(engine, texts, seed):
        pass
    return [one.result("") for one in texts]


@COMPILED
@pytest.mark.parametrize(
    ("family", "bits"), [("gpt2", 8), ("gpt_neo", None), ("gpt_neox", None), ("bloom", 8)]
)
def test_64_texts_are_what_each_is_alone(family: str, bits: int | None, tmp_path: Any) -> None:
    """To the last bit of every log-probability: beside others, and in so little memory that most must stand
    back.
    """
    model = model_of(family, **({"inner": 192} if family == "bloom" else {}))
    if bits is not None:
        model.save(tmp_path)
        model = daybreak.load(tmp_path, bits=bits)
    alone = [outcome(Engine(model), [one])[0] for one in mixed(64)]
    plenty = Engine(model, EngineSettings(batch_size=16, chunk=48))
    assert outcome(plenty, mixed(64)) == alone
    layout = plenty.pages.layout
    narrow = Engine(
        model, EngineSettings(batch_size=16, chunk=48, cache_memory=2 * layout.bytes_for(200, 48))
    )
    assert outcome(narrow, mixed(64)) == alone
    assert narrow.stood_back > 5
    assert plenty.stood_back == 0


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_j", "bloom", "opt"])
def test_texts_without_compiled_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens but where two are as likely; sums in torch depend on what is beside a text."""
    monkeypatch.setattr("daybreak.engine.step.why_not", lambda decoder: "a test")
    model = model_of(family)
    alone = [outcome(Engine(model), [one])[0] for one in mixed(8)]
    layout = Engine(model).pages.layout
    small = EngineSettings(batch_size=5, chunk=32, cache_memory=layout.bytes_for(200, 32))
    for given_ in (EngineSettings(batch_size=5, chunk=32), small):
        together = outcome(Engine(model, given_), mixed(8))
        assert [one.tokens for one in together] == [one.tokens for one in alone]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_that_is_known_is_not_read_again(family: str) -> None:
    model = model_of(family)
    start = tokens_of(1, 100)
    engine = Engine(model, EngineSettings(guesses=0))
    first = outcome(engine, [text([*start, 7, 8])])
    before = engine.tokens_read
    second = outcome(engine, [text([*start, 9])])
    expected = outcome(Engine(model), [text([*start, 9])])
    assert second[0].tokens == expected[0].tokens
    assert engine.tokens_read - before == 101 - 96 + 19  # 6 whole blocks of 16 were known
    before = engine.tokens_read
    again = outcome(engine, [text([*start, 7, 8, *first[0].tokens[:10]], max_new_tokens=10)])
    assert again[0].tokens == first[0].tokens[10:]
    assert (
        engine.tokens_read - before == 112 - 96 + 9
    )  # the last token is always read: the next comes from it


def test_samples_read_their_prompt_once() -> None:
    model = model_of("gpt_neox")
    engine = Engine(model)
    generate(model, tokens_of(3, 64), n=8, temperature=1.0, max_new_tokens=1, seed=1, engine=engine)
    assert engine.tokens_read == 64 + 7 * 16


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "bloom"])
def test_log_probabilities_of_a_prompt(family: str, known: bool) -> None:
    """In parts, and where its start is known already, they are those of one pass."""
    model = model_of(family)
    engine = Engine(model, EngineSettings(chunk=20))
    prompt = tokens_of(4, 77)
    if known:
        outcome(engine, [text(prompt[:60], prompt_logprobs=3), text(prompt[:30])])
    before = engine.tokens_read
    found = outcome(engine, [text(prompt, prompt_logprobs=3, max_new_tokens=0)])[0]
    assert engine.tokens_read - before == (77 - 2 * PAGE if known else 77)
    expected = of_tokens(model.logits(torch.tensor([prompt]))[0, :-1], prompt[1:], 3, 211)
    assert found.prompt_logprobs is not None and found.prompt_logprobs[0] is None
    for one, other in zip(found.prompt_logprobs[1:], expected, strict=True):
        assert one is not None and one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_a_cancelled_text_leaves_nothing() -> None:
    model = model_of("gpt2")
    engine = Engine(model)
    one, other = (engine.add(text(tokens_of(seed, 50), max_new_tokens=30), 0) for seed in (1, 2))
    for _ in range(5):
        engine.step()
    engine.cancel(one)
    held = engine.pages.used - engine.pages.idle
    assert held == len(other.table.blocks) * engine.pages.layout.page_bytes(0)
    while engine.busy:
        engine.step()
    assert engine.pages.used == engine.pages.idle
    assert other.text.tokens == outcome(Engine(model), [text(tokens_of(2, 50), max_new_tokens=30)])[0].tokens
    assert len(one.text.tokens) < 30


def test_windows_give_memory_back() -> None:
    """Layers with windows hold what is in sight, however long the text grows."""
    model = model_of("gpt_neo", windows=(None, 20), context=1024)
    engine = Engine(model, EngineSettings(guesses=0))
    layout = engine.pages.layout
    running = engine.add(text(tokens_of(1, 10), max_new_tokens=500), 0)
    for _ in range(400):
        engine.step()
        pages = -(-running.read // PAGE)
        local = len({place // PAGE for place in range(max(0, running.read - 19), running.read)})
        held = engine.pages.used - engine.pages.idle
        assert held == pages * layout.page_bytes(0) + local * layout.page_bytes(1)
    assert local <= 3


def test_logits_that_are_not_finite_end_one_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    with torch.no_grad():
        model.decoder.tokens.weight[13] = torch.nan
    engine = Engine(model)
    good, bad = text([1, 2, 3], suppress_tokens=[13]), text([1, 13, 3])
    running = [engine.add(one, 0) for one in (good, bad)]
    # The head is the same table: its row of token 13 says nothing for both, but only `bad` has read it.
    while engine.busy:
        engine.step()
    assert running[1].error is not None and "not finite" in str(running[1].error)
    assert engine.pages.used == engine.pages.idle


def test_a_text_that_can_never_fit_is_refused() -> None:
    model = model_of("gpt2")
    engine = Engine(model, EngineSettings(cache_memory=100_000))
    with pytest.raises(DaybreakError, match=r"needs .* MiB for its keys and values"):
        generate(model, tokens_of(1, 200), max_new_tokens=40, engine=engine)
    assert not engine.busy


def test_memory_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less address space than asked for serves as far as it reaches, and then there is an error."""
    model = model_of("gpt2")
    real, sizes = mmap.mmap, []

    def little(place: int, size: int, **flags: Any) -> mmap.mmap:
        sizes.append(size)
        if size > 100_000:
            raise OSError("no")
        return real(place, size, **flags)

    monkeypatch.setattr("daybreak.engine.pages.mmap.mmap", little)
    engine = Engine(model)
    assert len(sizes) > 5
    assert len(outcome(engine, [text([1, 2], max_new_tokens=5)])[0].tokens) == 5
    with pytest.raises(DaybreakError, match="no memory for the keys and values"):
        outcome(engine, [text(tokens_of(1, 100), max_new_tokens=100)])
    assert not engine.busy


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"chunk": -1}, "chunk"),
        ({"cache_memory": 2.5}, "cache_memory"),
        ({"cache_dtype": "float16"}, "float16"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], named: str) -> None:
    with pytest.raises(DaybreakError, match=named):
        model_of("gpt2").engine(**options)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pages_are_accounted_for(data: st.DataObject) -> None:
    """Texts that come, grow, share, stand back and go: what is used is what is held or may be found, no page
    is held by two that should not, and all comes back.
    """
    windows = data.draw(st.sampled_from([(None,), (None, 20), (5,), (33, None)]))
    layout = PageLayout("float32", windows, tuple(range(len(windows))), 1, 4)
    limit = data.draw(st.integers(2, 12)) * sum(layout.page_bytes(group) for group in range(len(windows)))
    pages = Pages(layout, limit)
    tables: dict[int, tuple[PageTable, list[int], int]] = {}
    for number in range(data.draw(st.integers(1, 25))):
        which = data.draw(st.integers(0, 4))
        if which in tables and data.draw(st.booleans()):
            tables.pop(which)[0].release()
        elif which not in tables:
            tokens = data.draw(st.sampled_from([[1] * 64, [1] * 32 + [2] * 32, [number] * 64]))
            table = PageTable(pages)
            found = pages.find(keys_of(tokens))
            table.adopt(found)
            tables[which] = (table, tokens, len(found) * PAGE)
        else:
            table, tokens, read = tables[which]
            end = min(64, read + data.draw(st.integers(1, 30)))
            if not table.reach(end):
                table.release()
                tables.pop(which)
                continue
            for block in range(read // PAGE, end // PAGE):
                pages.know(table.blocks[block], keys_of(tokens)[block])
            table.forget(end)
            tables[which] = (table, tokens, end)
        _check_pages(pages, [table for table, _, _ in tables.values()])
    for table, _, _ in tables.values():
        table.release()
    assert pages.used == pages.idle <= limit


def _check_pages(pages: Pages, tables: Sequence[PageTable]) -> None:
    held: set[tuple[int, int]] = set()
    for table in tables:
        for group in pages.groups:
            begin = table._begins[group]
            for number, block in enumerate(table.blocks):
                address = table._addresses[group][number]
                assert (address == 0) == (number < begin)
                if address:
                    assert block.pages[group] == address
                    held.add((group, address))
    sizes = [pool.size for pool in pages.pools]
    assert sum(sizes[group] for group, _ in held) == pages.used - pages.idle
    assert pages.used <= pages.limit


def test_a_page_is_zeros_when_it_comes_back() -> None:
    pages = Pages(PageLayout("float32", (None,), (0,), 1, 4), 1 << 20)
    block = pages.new()
    assert isinstance(block, Block)
    pool = pages.pools[0]
    start = block.pages[0] - pool.base
    pool.bytes[start : start + pool.size] = 255
    pages.release(block, 0)
    again = pages.new()
    assert again is not None and again.pages == [block.pages[0] or again.pages[0]]
    assert not pool.bytes.any()
    assert pages.used == pool.size


def test_blanks_share_whole_contexts_only() -> None:
    """A token of a context that is read in both directions depends on all of it."""
    blanks = Blanks(start=290, end=291, mask=292, rest=293)
    model = model_of("glm", vocabulary=300, blanks=blanks)
    context = [*tokens_of(5, 90)[:40], blanks.mask, *tokens_of(6, 20), blanks.start]
    other = [*context[:50], (context[50] + 1) % 200, *context[51:]]
    engine = Engine(model, EngineSettings(chunk=16))
    first = outcome(engine, [text(context, max_new_tokens=30)])[0]
    for prompt, new in ((other, 62 + 29), ([*context, *first.tokens[:5]], 62 + 5 - 64 + 29)):
        before = engine.tokens_read
        found = outcome(engine, [text(prompt, max_new_tokens=30)])[0]
        assert engine.tokens_read - before == new
        assert found.tokens == outcome(Engine(model), [text(prompt, max_new_tokens=30)])[0].tokens
