"""What a run came to, in words."""

from __future__ import annotations

from collections.abc import Iterator

from daybreak.train.report import Report
from daybreak.train.sample import Completion, Parsed


def lines(report: Report) -> Iterator[str]:
    """The report as people read it."""
    yield from _completions(report)
    yield from _text(report)
    yield from _score(report)
    if report.parsed is not None:
        yield from _parsed(report.parsed)
    if report.uncompiled:
        yield f"not compiled: {report.uncompiled}; with one, training is about 1.5 times as fast"
    phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in report.seconds.items() if seconds >= 0.5)
    yield f"time:         {sum(report.seconds.values()):.0f} s ({phases})"
    written = ("loss.png", "metrics.jsonl", "quickstart.json")
    others = [name for name in written if (report.folder / name).exists()]
    yield f"model:        {report.folder} (also {', '.join(others)})"
    if report.finished:
        yield f'try:          daybreak generate {report.folder} "def read_lines(path):" --temperature 0.5'


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


def _completions(report: Report) -> Iterator[str]:
    for number, completion in enumerate(report.completions, 1):
        yield f"completion {number} (the model writes on after >>>)"
        yield from _indented(completion)
        yield ""


def _indented(completion: Completion) -> Iterator[str]:
    for line in f"{completion.prompt}>>>{completion.text}".splitlines():
        yield f"    {line}"
