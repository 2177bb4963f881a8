"""Two callers of one engine, texts that fail or are left, memory that is short: nobody else notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from daybreak.architecture import Architecture
from daybreak.compare.redraw import redraw
from daybreak.engine.engine import Engine, EngineSettings, write
from daybreak.engine.pages import PAGE, PageLayout, Pages, PageTable
from daybreak.engine.speculation import Draft
from daybreak.engine.step import Part, TorchStep
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from tests.unit.test_engine import COMPILED, model_of, outcome, text, tokens_of
from tests.unit.tiny_models import speaking


def test_an_engine_writes_for_its_own_model_alone() -> None:
    model, other = speaking("gpt2"), speaking("llama")
    engine = other.engine()
    for call in (model.generate, model.stream):
        with pytest.raises(DaybreakError, match="another model's"):
            call([[1, 2]] if call == model.generate else [1, 2], engine=engine)


def test_two_streams_of_one_engine_lose_nothing() -> None:
    """What one of them writes while the other is read is shown all the same."""
    model = speaking()
    redraw(model.decoder, 3)
    asked: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True}
    expected = [model.generate("ab", seed=n, max_new_tokens=5 + 20 * n, **asked)[0].text for n in (0, 1)]
    for first, second in ((0, 1), (1, 0)):
        engine = model.engine(guesses=0)
        streams = [
            model.stream("ab", seed=n, max_new_tokens=5 + 20 * n, engine=engine, **asked) for n in (0, 1)
        ]
        begun = iter(streams[first])
        shown = next(begun)
        assert "".join(streams[second]) == expected[second]
        assert shown + "".join(begun) == expected[first]


def test_an_error_reaches_the_one_whose_text_it_is() -> None:
    model = model_of("gpt2")
    with torch.no_grad():
        model.decoder.tokens.weight[13] = torch.nan
    engine = Engine(model, EngineSettings(guesses=0))
    bad = write(engine, [text([1, 13, 3])], 0)
    next(bad)
    assert len(outcome(engine, [text([1, 2], suppress_tokens=[13])])[0].tokens) == 20
    with pytest.raises(DaybreakError, match="not finite"):
        list(bad)


def test_a_text_that_is_refused_leaves_none_of_its_call() -> None:
    model = model_of("gpt2")
    engine = Engine(model, EngineSettings(cache_memory=100_000))
    with pytest.raises(DaybreakError, match="keys and values"):
        outcome(engine, [text([1, 2]), text(tokens_of(1, 200))])
    assert not engine.busy


def test_a_stream_that_was_left_goes_on_where_it_was() -> None:
    model = speaking()
    redraw(model.decoder, 3)
    asked: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "frequency_penalty": 1.0,
        "max_new_tokens": 30,
        "ignore_eos": True,
    }
    expected = model.generate("ab", **asked)[0]
    stream = model.stream("ab", **asked)
    shown = ""
    for piece in stream:
        shown += piece
        if len(shown) > 5:
            break
    shown += "".join(stream)
    assert (shown, stream.result.tokens) == (expected.text, expected.tokens)


def test_a_pass_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for the logits, say: who asks on gets the text that he would have got."""
    model = model_of("gpt_neo")
    texts = [text(tokens_of(n, 30 + n), n, temperature=0.8) for n in range(3)]
    expected = outcome(Engine(model), [text(tokens_of(n, 30 + n), n, temperature=0.8) for n in range(3)])
    engine = Engine(model)
    for one in texts:
        engine.add(one, 5)
    unembed, calls = engine._step.unembed, []

    def failing(*given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) in (1, 5):
            raise MemoryError
        return unembed(*given)

    monkeypatch.setattr(engine._step, "unembed", failing)
    failed = 0
    for _ in range(200):
        if not engine.busy:
            break
        try:
            engine.step()
        except MemoryError:
            failed += 1
    assert failed == 2 and not engine.busy
    assert [one.result("") for one in texts] == expected
    assert engine.pages.used == engine.pages.idle


def test_what_nobody_reads_makes_room_where_the_system_gives_little() -> None:
    """Less address space than was asked for: pages that are only remembered are given up for new texts."""
    layout = PageLayout("float32", (None, 20), (0, 1), 1, 4)
    pages = Pages(layout, 100 * layout.page_bytes(0))
    for pool in pages.pools:
        pool._count = 3
    for number in range(5):
        table = PageTable(pages)
        assert table.reach(3 * PAGE)
        for place, block in enumerate(table.blocks):
            pages.know(block, bytes([number, place]))
        table.release()
        assert pages.used == pages.idle


def test_pools_that_are_taken_at_once_are_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daybreak.engine.pages.LAZY", False)
    monkeypatch.setattr("daybreak.engine.engine.LAZY", False)
    layout = PageLayout("float32", (None, 20), (0, 1), 1, 4)
    pages = Pages(layout, 1 << 20)
    assert sum(pool.bytes.nbytes for pool in pages.pools) <= 1 << 20
    model = model_of("gpt_neo")
    texts = [text(tokens_of(n, 40), n) for n in range(3)]
    expected = [outcome(Engine(model), [text(tokens_of(n, 40), n)])[0] for n in range(3)]
    least = Engine(model).pages.layout.bytes_for(60, 512)
    assert outcome(Engine(model, EngineSettings(cache_memory=4 * least)), texts) == expected


def test_numbers_of_another_text_do_not_reach_into_a_window() -> None:
    """Pages that were given back are read as nothing, whatever stands where they were."""
    architecture = Architecture(
        vocabulary=97, context=128, layers=2, width=24, heads=2, inner=40, windows=(None, 5)
    )
    decoder = Decoder(architecture).eval()
    redraw(decoder, 1)
    tokens = tokens_of(1, 40)
    tokens = [token % 97 for token in tokens]
    pages = Pages(PageLayout.of(architecture, "float32"), 1 << 24)
    bad, good = PageTable(pages), PageTable(pages)
    assert bad.reach(16) and good.reach(40)
    with torch.inference_mode():
        step = TorchStep(decoder, pages)
        step.read([Part(good, tokens[:38], 0)])
        good.forget(38)
        for pool in pages.pools:  # what a text whose numbers ran over leaves in its pages
            start = bad.blocks[0].pages[pages.pools.index(pool)] - pool.base
            pool.bytes[start : start + pool.size].view(torch.float32).fill_(torch.nan)
        found = step.unembed(step.read([Part(good, tokens[38:39], 38)]))
    expected = decoder.logits(torch.tensor([tokens[:39]]))[0, -1:]
    assert torch.allclose(found, expected, atol=1e-4)


@COMPILED
def test_a_draft_reads_long_prompts_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draft = model_of("gpt_neox", layers=3), model_of("gpt_neox", layers=1)
    asked: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True}
    prompts = [tokens_of(n, 200) for n in range(3)]
    expected = model.generate(prompts, **asked)
    engine = Engine(model, EngineSettings(chunk=32), draft)
    assert isinstance(engine._guesser, Draft)
    read, sizes = engine._guesser._step.read, []

    def noted(parts: Any) -> torch.Tensor:
        sizes.append(sum(len(part.tokens) for part in parts))
        return read(parts)

    monkeypatch.setattr(engine._guesser._step, "read", noted)
    assert model.generate(prompts, engine=engine, **asked) == expected
    assert sum(sizes) > 200 and max(sizes) <= 32
