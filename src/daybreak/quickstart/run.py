"""The main job in one go: read, tokenize, pretrain, score, sample, save."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from daybreak.data.compression import xz
from daybreak.data.windows import scoring_windows, training_windows
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.objectives.batch import Batch, loss
from daybreak.quickstart import run_folder, sample, task
from daybreak.quickstart.functions import shuffled
from daybreak.quickstart.infilling import attempts, deleted_lines, examples, summary
from daybreak.quickstart.loop import Point, train
from daybreak.quickstart.optimizers import Rates, optimizers
from daybreak.quickstart.pairs import Tables, count_pairs
from daybreak.quickstart.picture import loss_curve
from daybreak.quickstart.report import Clock, Report, Watch
from daybreak.quickstart.schedule import Budget, Seconds, Steps
from daybreak.quickstart.score import bits_per_byte
from daybreak.quickstart.settings import Settings
from daybreak.quickstart.start import start, tables
from daybreak.quickstart.text import Text, read_text
from daybreak.quickstart.tied_start import TiedTables, count_targets, fit_tied, has_place
from daybreak.train.compiled import compiled
from daybreak.train.precision import Loss, faster_dtype, in_dtype, products
from daybreak.train.repeatable import repeatable
from daybreak.train.stop import Stop, stop_on_signals

RATES = Rates()
COMPLETIONS = 3
COMPLETED_LINES = 4
"""A function whose beginning is shown completed has at least so many lines more."""
COUNTED = 200
"""Batches in which pairs of tokens are counted."""
LINES = 300
"""Deleted lines to be filled in."""
FORWARD = 0.6
"""A token read while scoring, uncompiled, against one learned from."""
SAMPLING = 8.0
"""Seconds for sampling and saving."""
INFILLING = 8.0
"""Seconds for filling in lines."""
MARGIN = 1.3
"""On the time that scoring and sampling should take: a machine may slow down."""


def quickstart(settings: Settings, target: Path, watch: Watch, clock: Clock, force: bool = False) -> Report:
    """Train, score and sample a small model, and leave it in the folder `target` as a Hugging Face
    checkpoint.

    `target` may be an earlier run, which is replaced, or with `force` any folder. SIGINT and SIGTERM end
    training early; what was learned is then saved, unscored. Raises `DaybreakError` for a target that is
    something else, and where there is no source to learn from.
    """
    run_folder.check_target(target, force)
    with stop_on_signals() as stop, run_folder.new_folder(target) as folder, repeatable(settings.compiling):
        run = _Run(settings, watch, clock, stop, folder)
        with ThreadPoolExecutor(1) as helper:
            # One core reads, counts and compresses the text while the other compiles.
            reading = helper.submit(run.read)
            compressing = helper.submit(run.compress)
            run.compile()
            with clock.phase("reading the text"):
                reading.result()
            run.train()
            if stop.asked and not run.steps:
                raise KeyboardInterrupt  # nothing was learned, so what stands at `target` stays
            if stop.asked:
                compressing.cancel()
            else:
                with _kept(run.model, target):
                    run.score()
                    run.sample()
                    if settings.infilling:
                        run.infill()
                with clock.phase("compressing"):
                    compressing.result()
        run.save()
        report = run.report(target)
        run_folder.write_json(folder / run_folder.RESULT, report.to_dict())
    return report


@contextmanager
def _kept(model: LanguageModel, target: Path) -> Iterator[None]:
    """What was learned is not lost where scoring fails: the model goes to a folder beside the target."""
    try:
        yield
    except Exception as error:
        beside = target.with_name(f"{target.name}-unscored")
        model.save(beside)
        raise DaybreakError(f"scoring failed, but the trained model is in {beside}: {error}") from error


class _Run:
    """The phases of one run, in the order in which they are called."""

    def __init__(self, settings: Settings, watch: Watch, clock: Clock, stop: Stop, folder: Path) -> None:
        self.settings, self.watch, self.clock, self.stop, self.folder = settings, watch, clock, stop, folder
        self.model = task.fresh(settings)
        self.dtype = faster_dtype()
        self.loss: Loss = in_dtype(loss, self.dtype)
        self.points: list[Point] = []
        self.steps = 0
        self.text: Text
        self.tables: Tables | TiedTables | None = None
        self.found: dict[str, Any] = {}
        """Results by their name in the report."""

    def read(self) -> None:
        settings = self.settings
        self.text = read_text(settings.vocabulary, settings.source, task.marks(settings))
        self.model.tokenizer = self.text.tokenizer
        self.tables = self._tables()

    def _tables(self) -> Tables | TiedTables | None:
        decoder, documents, seed = self.model.decoder, self.text.training.documents, self.settings.seed
        if not has_place(decoder.architecture):
            return tables(decoder, documents, seed)
        vocabulary = decoder.architecture.vocabulary
        pairs = count_pairs(documents, vocabulary)
        # Where pieces begin and end stands in no document.
        drawn = count_targets(itertools.islice(self._batches(), COUNTED), vocabulary)
        return fit_tied(pairs / pairs.sum() + drawn / drawn.sum(), decoder.architecture.width, seed)

    def compress(self) -> None:
        self.found["xz"] = xz(self.text.training.content, self.text.validation.content)

    def compile(self) -> None:
        if self.settings.compiling:
            with self.clock.phase("compiling"):
                shape = (self.settings.batch, self.settings.context + 1)
                objective = task.objective(self.settings, self.model)
                example = objective.batch(torch.zeros(shape).long(), task.numbers(0, shape[0]))
                found = compiled(self.loss, self.model.decoder, example)
                self.loss, self.found["uncompiled"] = found.loss_of, found.problem

    def train(self) -> None:
        start(self.model.decoder, self.tables, self.settings.seed)
        with self.clock.phase("training"):
            decoder, budget = self.model.decoder, self._budget()
            chosen = optimizers(decoder, RATES, self.dtype)
            self.steps = train(decoder, self.loss, self._batches(), budget, chosen, self.stop, self._note)

    def score(self) -> None:
        with self.clock.phase("scoring"), products(self.dtype):
            part, settings = self.text.validation, self.settings
            self.found["bits_per_byte"] = bits_per_byte(
                self.model.decoder,
                part.documents,
                part.size,
                task.readable(settings, self.model),
                settings.stride,
                self.watch.progress,
                self._reads,
            )

    def sample(self) -> None:
        with self.clock.phase("sampling"):
            seed, count = self.settings.seed, self.settings.samples
            texts = [file.text for file in self.text.validation.files]
            drawn = sample.choose(self.model, shuffled(texts, seed), count)
            long = [function for function in drawn if function.body.count("\n") >= COMPLETED_LINES]
            untrained = task.fresh(self.settings)
            untrained.tokenizer = self.model.tokenizer
            self.found["parsed"] = sample.parsed(
                self.model, untrained, drawn, seed, self.watch.progress, self._reads
            )
            self.found["completions"] = sample.complete_prompts(
                self.model, long[:COMPLETIONS], seed, self._reads
            )

    def infill(self) -> None:
        with self.clock.phase("infilling"):
            assert self.model.tokenizer is not None
            files, seed = self.text.validation.files, self.settings.seed
            lines = deleted_lines(files, self.model.tokenizer, LINES, seed)
            if lines:
                tried = attempts(self.model, lines, True, self.watch.progress)
                self.found["infilled"] = summary(tried, seed)
                self.found["examples"] = examples(lines, tried, COMPLETIONS)

    def save(self) -> None:
        with self.clock.phase("saving"):
            self.model.save(self.folder)
            if self.points:
                title = f"a small model of the {self.model.family.title} design"
                loss_curve(self.points, self.folder / "loss.png", title)

    def report(self, target: Path) -> Report:
        decoder = self.model.decoder
        return Report(
            folder=target,
            finished=not self.stop.asked,
            settings=self.settings,
            parameters=sum(parameter.numel() for parameter in decoder.parameters()),
            steps=self.steps,
            tokens=self.steps * self.settings.batch * self.settings.context,
            training=self.text.training.summary(),
            validation=self.text.validation.summary(),
            seconds=self.clock.phases,
            **self.found,
        )

    def _reads(self, beginning: Sequence[int]) -> list[int]:
        return task.prompt(self.settings, self.model, beginning)

    def _batches(self) -> Iterator[Batch]:
        settings, objective = self.settings, task.objective(self.settings, self.model)
        windows = training_windows(self.text.training.documents, settings.context, settings.seed)
        for step in itertools.count():
            rows = torch.stack([next(windows) for _ in range(settings.batch)])
            yield objective.batch(rows, task.numbers(step, settings.batch))

    def _budget(self) -> Budget:
        if self.settings.steps is not None:
            return Steps(self.settings.steps)
        return Seconds(max(self.settings.seconds - self.clock.elapsed - self._afterwards(), 1.0))

    def _afterwards(self) -> float:
        """Seconds that scoring and sampling will take, from the time that one training batch takes here."""
        batch, settings, tries = next(self._batches()), self.settings, []
        for _ in range(3):
            began = time.perf_counter()
            self.loss(self.model.decoder, batch).backward()  # type: ignore[no-untyped-call]
            tries.append(time.perf_counter() - began)
        self.model.decoder.zero_grad()
        per_token = min(tries) / (settings.batch * settings.context)
        lengths = [len(document) for document in self.text.validation.documents]
        windows = scoring_windows(lengths, settings.context, settings.stride)
        read = sum(window.end - window.begin for window in windows)
        infilling = INFILLING if settings.infilling else 0.0
        return MARGIN * (read * per_token * FORWARD + SAMPLING + infilling)

    def _note(self, point: Point) -> None:
        self.points.append(point)
        run_folder.append_metrics(self.folder, dataclasses.asdict(point))
        self.watch.point(point)
