"""Can it fill in a deleted line? Lines of real files, with what stands around them, and what models make of
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from daybreak.data.standard_library import SourceFile
from daybreak.engine.frame import Frame
from daybreak.language_model import LanguageModel
from daybreak.text.tokenizer import Tokenizer

READ = 192
"""Tokens of the file that a model may read: half before the line and half after it, or all before it."""
LONGEST = 48
"""Tokens of a line at most, and new tokens of a filling."""
RESAMPLED = 1000
"""Times that lines are drawn again for an interval."""
AROUND = 3
"""Lines shown on both sides of an example."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Deleted:
    """A line of a file, without its indentation and its line break, and the file around it."""

    before: str
    """Ends with the line's indentation."""
    line: str
    after: str
    """Begins with the line break."""


@dataclass(frozen=True)
class Share:
    """A share with the interval that holds 95 % of what other lines of the same kind would give."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Infilled:
    """What a model made of deleted lines."""

    lines: int
    exact: Share
    """Written exactly as they were, but for white space at the end; the likeliest token each time."""
    tokens: Share
    """Tokens of the lines that were the likeliest, given those before them in the line."""


@dataclass(frozen=True)
class Example:
    """A deleted line, and the line that was written."""

    before: str
    line: str
    written: str
    after: str


@dataclass(frozen=True)
class Attempt:
    """What a model made of one line."""

    written: str
    exact: bool
    right: int
    """Tokens that were the likeliest."""
    tokens: int


def deleted_lines(files: Sequence[SourceFile], tokenizer: Tokenizer, count: int, seed: int) -> list[Deleted]:
    """`count` lines of these files, drawn at random.

    Left out are blank lines, imports, and lines of more than `LONGEST` tokens; of lines that read the same,
    whatever their indentation, one is taken.
    """
    places = [(file.text, *place) for file in files for place in _lines(file.text)]
    found: dict[str, Deleted] = {}
    for number in np.random.default_rng(seed).permutation(len(places)):
        text, begin, end = places[number]
        line = text[begin:end]
        if line in found or line.startswith(("import ", "from ")):
            continue
        if len(tokenizer.encode(line, bos=False, special=False)) <= LONGEST:
            found[line] = Deleted(text[:begin], line, text[end:])
        if len(found) == count:
            break
    return list(found.values())


def _lines(text: str) -> list[tuple[int, int]]:
    """Begin and end of what stands on every line that is not blank and ends with a line break."""
    found, begin = [], 0
    for whole in text.split("\n")[:-1]:
        content = whole.strip(" \t\r\f")
        if content:
            first = begin + whole.index(content)
            found.append((first, first + len(content)))
        begin += len(whole) + 1
    return found


def attempts(
    model: LanguageModel, lines: Sequence[Deleted], infilling: bool, progress: Progress | None = None
) -> list[Attempt]:
    """What `model` makes of `lines`: with `infilling` it reads both sides, else what stands before."""
    assert model.tokenizer is not None
    prompts = [_prompt(model, line, infilling) for line in lines]
    stop = [] if infilling else ["\n"]
    results = model.generate(
        prompts, max_new_tokens=LONGEST, temperature=0, batch_size=64, progress=progress, stop=stop
    )
    found = []
    for line, prompt, result in zip(lines, prompts, results, strict=True):
        true = _true(model.tokenizer, line, infilling)
        written = result.text.partition("\n")[0].rstrip()
        found.append(Attempt(written, written == line.line, _right(model, prompt, true), len(true)))
    return found


def summary(tried: Sequence[Attempt], seed: int) -> Infilled:
    """Both shares with their intervals (bootstrap over lines)."""
    exact = np.array([one.exact for one in tried], dtype=float)
    right, tokens = np.array([one.right for one in tried]), np.array([one.tokens for one in tried])
    drawn = np.random.default_rng(seed).integers(len(tried), size=(RESAMPLED, len(tried)))
    return Infilled(
        len(tried),
        _share(float(exact.mean()), exact[drawn].mean(1)),
        _share(float(right.sum() / tokens.sum()), right[drawn].sum(1) / tokens[drawn].sum(1)),
    )


def _share(value: float, resampled: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Share:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Share(value, float(low), float(high))


def examples(lines: Sequence[Deleted], tried: Sequence[Attempt], count: int) -> list[Example]:
    """The first ones that stand inside of something and are no comment."""
    inside = [
        (line, one)
        for line, one in zip(lines, tried, strict=True)
        if line.before.endswith("    ") and line.line[0] not in "#\"'" and len(line.line) > 12
    ]
    return [
        Example(
            "\n".join(line.before.split("\n")[-AROUND - 1 :]),
            line.line,
            one.written,
            "\n".join(line.after.split("\n")[: AROUND + 1]),
        )
        for line, one in inside[:count]
    ]


def _prompt(model: LanguageModel, line: Deleted, infilling: bool) -> list[int]:
    tokenizer, blanks = model.tokenizer, model.architecture.blanks
    assert tokenizer is not None
    before = tokenizer.encode(line.before, bos=True, special=False)
    if not infilling:
        opening = [] if blanks is None else [blanks.rest, blanks.start]
        return [*opening, *before[-READ:]]
    assert blanks is not None
    after = tokenizer.encode(line.after, bos=False, special=False)
    left = before[-max(READ // 2, READ - len(after)) :]
    mark = blanks.mask if blanks.sentence is None else blanks.sentence
    return Frame.of(model).prompt([*left, mark, *after[: READ - len(left)]])


def _true(tokenizer: Tokenizer, line: Deleted, infilling: bool) -> list[int]:
    """The tokens of the line. From left to right the last one may hold the line break as well, and the
    indentation that follows."""
    if infilling:
        return tokenizer.encode(line.line, bos=False, special=False)
    space = line.after[: len(line.after) - len(line.after.lstrip())]
    ids = tokenizer.encode(line.line + space, bos=False, special=False)
    fronts = [tokenizer.decode([token]).partition("\n") for token in ids]
    end = next(place for place, (_, newline, _) in enumerate(fronts) if newline)
    return ids[: end + 1] if fronts[end][0] else ids[:end]


@torch.no_grad()
def _right(model: LanguageModel, prompt: Sequence[int], true: Sequence[int]) -> int:
    """How many of `true` are the likeliest token behind the prompt and those before them. What a token holds
    from a line break on does not count."""
    assert model.tokenizer is not None
    read = torch.tensor([[*prompt, *true[:-1]]])
    hidden = model.decoder(model.decoder.reading(read))[0, len(prompt) - 1 :]
    likeliest = model.decoder.unembed(hidden).argmax(-1).tolist()
    decode = model.tokenizer.decode
    return sum(
        decode([one]).partition("\n")[0] == decode([other]).partition("\n")[0]
        for one, other in zip(likeliest, true, strict=True)
    )
