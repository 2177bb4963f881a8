"""What a run came to, in words."""

from __future__ import annotations

from collections.abc import Iterator

from daybreak import families
from daybreak.quickstart.infilling import READ, Infilled
from daybreak.quickstart.report import Report
from daybreak.quickstart.sample import Completion, Parsed


def lines(report: Report) -> Iterator[str]:
    """The report as people read it."""
    yield from _completions(report)
    yield from _examples(report)
    yield from _text(report)
    yield from _score(report)
    if report.parsed is not None:
        yield from _parsed(report.parsed)
    if report.infilled is not None:
        yield from _infilled(report.infilled)
    if report.uncompiled:
        yield f"not compiled: {report.uncompiled}; with one, training is about 1.5 times as fast"
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report.seconds.items() if seconds >= 0.5)
    yield f"time:         {sum(report.seconds.values()):.0f} s ({phases})"
    written = ("loss.png", "metrics.jsonl", "quickstart.json")
    others = [name for name in written if (report.folder / name).exists()]
    yield f"model:        {report.folder} (also {', '.join(others)})"
    if report.finished:
        yield f"try:          {_next(report)}"


def _text(report: Report) -> Iterator[str]:
    for name, part in (("training", report.training), ("validation", report.validation)):
        yield (
            f"{name + ' text:':<17} {part['files']} files, {part['bytes'] / 1e6:.2f} MB, "
            f"{part['tokens'] / 1e6:.2f} M tokens"
        )
    yield (
        f"learned from:     {report.tokens / 1e6:.2f} M tokens in {report.steps} steps, "
        f"{report.parameters / 1e6:.2f} M parameters, {report.settings.family}"
    )


def _score(report: Report) -> Iterator[str]:
    if not report.finished:
        yield "interrupted: the model is saved as it was; it was not scored"
        return
    settings = report.settings
    yield "validation, bits per byte"
    yield (
        f"  this model                             {report.bits_per_byte:.3f}   every byte once; at most "
        f"{settings.context} tokens read, {settings.stride} new ones at a time"
    )
    if report.xz is not None:
        yield f"  xz -9e                                 {report.xz.alone:.3f}"
        yield f"  xz -9e, given the training text first  {report.xz.after_training:.3f}"


def _parsed(parsed: Parsed) -> Iterator[str]:
    yield (
        f"functions that parse, of {parsed.samples} (from real def lines; temperature {parsed.temperature}, "
        f"at most {parsed.room} tokens)"
    )
    yield f"  this model                             {parsed.model:.0%}"
    yield f"  the same, untrained                    {parsed.untrained:.0%}"
    yield f"  the real ones, cut to the same length  {parsed.real:.0%}"


def _infilled(infilled: Infilled) -> Iterator[str]:
    yield (f"deleted lines written back, of {infilled.lines} (at most {READ} tokens around each are read)")
    for name, share in (("exactly", infilled.exact), ("token by token", infilled.tokens)):
        yield f"  {name:<37} {share.value:.1%}   95 % interval {share.low:.1%} to {share.high:.1%}"


def _next(report: Report) -> str:
    if report.infilled is not None:
        mark = families.by_name(report.settings.family).blank_tokens["sentence"]
        text = f"def read_lines(path):\n    with open(path) as file:\n        {mark}\n"
        return f"daybreak infill {report.folder} $'{text}'".replace("\n", "\\n")
    return f'daybreak generate {report.folder} "def read_lines(path):" --temperature 0.5'


def _examples(report: Report) -> Iterator[str]:
    for number, example in enumerate(report.examples, 1):
        yield f"deleted line {number} (the model writes what stands after >>>)"
        yield from _indented_text(f"{example.before}>>>{example.written}{example.after}")
        yield "  it was"
        yield f"    {example.line}"
        yield ""


def _completions(report: Report) -> Iterator[str]:
    for number, completion in enumerate(report.completions, 1):
        yield f"completion {number} (the model writes on after >>>)"
        yield from _indented(completion)
        yield ""


def _indented(completion: Completion) -> Iterator[str]:
    yield from _indented_text(f"{completion.prompt}>>>{completion.text}")


def _indented_text(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"    {line}"
