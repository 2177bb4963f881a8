"""Deleted lines: which are drawn, what a model may read, and what counts as right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import daybreak
from daybreak.architecture import Blanks
from daybreak.data.standard_library import SourceFile
from daybreak.language_model import LanguageModel
from daybreak.quickstart.infilling import READ, Attempt, Deleted, attempts, deleted_lines, examples, summary
from daybreak.text.train_tokenizer import train_tokenizer

CODE = [
    f"import os\nfrom sys import path\n\n\ndef name_{n}(self, value{n}):\n    if value{n}:\n"
    f"        return self.f([{n}])\n\n    # say {n}\n    return {n}\n"
    for n in range(30)
]
MARKS = ["<|startofpiece|>", "<|endofpiece|>", "[MASK]", "[gMASK]", "[sMASK]"]
TOKENIZER = train_tokenizer(CODE, 290, marks=MARKS)
BLANKS = Blanks(start=290, end=291, mask=292, rest=293, sentence=294)
FILES = [SourceFile(f"{n}.py", text.encode()) for n, text in enumerate(CODE)]


def model(family: str) -> LanguageModel:
    sizes = {"vocabulary": 295, "width": 16, "layers": 1, "heads": 2, "context": 256}
    extra = {"blanks": BLANKS} if family == "glm" else {}
    found = daybreak.create(family, seed=1, **sizes, **extra)
    found.tokenizer = TOKENIZER
    return found


def test_lines_are_whole_and_each_is_there_once() -> None:
    found = deleted_lines(FILES, TOKENIZER, 1000, seed=0)
    assert {line.before + line.line + line.after for line in found} <= {*CODE}
    contents = [line.line for line in found]
    assert len({*contents}) == len(contents) == 30 * 5
    assert not any(line.startswith(("import", "from")) or line != line.strip() for line in contents)
    assert all(line.before[-1:] in ("\n", " ") and line.after.startswith("\n") for line in found)


def test_the_same_seed_draws_the_same_lines() -> None:
    assert deleted_lines(FILES, TOKENIZER, 20, 3) == deleted_lines(FILES, TOKENIZER, 20, 3)
    assert deleted_lines(FILES, TOKENIZER, 20, 3) != deleted_lines(FILES, TOKENIZER, 20, 4)
    assert len(deleted_lines(FILES, TOKENIZER, 20, 3)) == 20


@pytest.mark.parametrize("infilling", [False, True])
def test_what_is_read_and_what_is_right(infilling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always knows gets everything right; both sides may read as many tokens of the file."""
    long = "".join(CODE)
    place = long.index("return self.f([15])")
    line = Deleted(long[:place], "return self.f([15])", long[place + len("return self.f([15])") :])
    knows = model("glm" if infilling else "gpt2")
    truth = TOKENIZER.encode(line.line, special=False)
    if not infilling:
        truth = TOKENIZER.encode(line.line + "\n\n    ", special=False)
    read: list[list[int]] = []

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        """The right token behind each of the last places."""
        wanted = torch.zeros(tokens.shape[1], knows.architecture.vocabulary)
        known = [*truth, BLANKS.end]
        done = tokens[0].tolist()
        if BLANKS.start in done:
            first = done.index(BLANKS.start)
        else:
            first = len(TOKENIZER.encode(line.before, bos=True, special=False)[-READ:]) - 1
        for n in range(first, len(done)):
            wanted[n, known[min(n - first, len(known) - 1)]] = 1.0
        return wanted

    def forward(reading: object) -> torch.Tensor:
        tokens = reading.tokens  # type: ignore[attr-defined]
        read.append(tokens[0].tolist())
        return logits(tokens)[None]

    monkeypatch.setattr(knows.decoder, "forward", forward)
    monkeypatch.setattr(knows.decoder, "unembed", lambda hidden: hidden)

    class Result:
        text = line.line + ("  " if infilling else "\n\n    # say")

    monkeypatch.setattr(knows, "generate", lambda prompts, **settings: [Result()])
    (tried,) = attempts(knows, [line], infilling)
    assert tried.exact and tried.right == tried.tokens >= 8
    tokens = read[0][: len(read[0]) - tried.tokens + 1]
    ordinary = [token for token in tokens if token < 290]
    closing = 1 if infilling else 0  # the end of the text that stands behind every context
    assert len(ordinary) - closing == READ
    if infilling:
        mark = tokens.index(BLANKS.sentence)
        assert line.before.endswith(TOKENIZER.decode(tokens[:mark]))
        assert line.after.startswith(TOKENIZER.decode(ordinary[mark:-1]))
        assert mark == READ // 2
    else:
        assert line.before.endswith(TOKENIZER.decode(tokens))


@pytest.mark.parametrize("family", ["glm", "gpt2"])
def test_a_fresh_model_knows_nothing(family: str) -> None:
    lines = deleted_lines(FILES, TOKENIZER, 10, 0)
    tried = attempts(model(family), lines, infilling=family == "glm")
    assert len(tried) == 10 and not any(one.exact for one in tried)
    assert sum(one.right for one in tried) < 0.3 * sum(one.tokens for one in tried)
    assert len(examples(lines, tried, 2)) == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_shares_lie_in_their_intervals(drawn: list[tuple[bool, int]]) -> None:
    found = summary([Attempt("", exact, right, 5) for exact, right in drawn], seed=0)
    assert found.lines == len(drawn)
    assert found.exact.value == pytest.approx(sum(exact for exact, _ in drawn) / len(drawn))
    assert found.tokens.value == pytest.approx(sum(right for _, right in drawn) / 5 / len(drawn))
    for share in (found.exact, found.tokens):
        assert -1e-9 <= share.low - 1e-9 <= share.value <= share.high + 1e-9 <= 1 + 2e-9


def test_an_interval_is_as_wide_as_chance() -> None:
    tried = [Attempt("", n % 4 == 0, 1, 2) for n in range(400)]
    found = summary(tried, seed=0).exact
    assert found.value == 0.25 and found.high - found.low == pytest.approx(
        4 * (0.25 * 0.75 / 400) ** 0.5, rel=0.15
    )
