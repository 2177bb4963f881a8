"""The stages of the demo for one seed, each a run folder of its own: what is done is not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daybreak.align import preference_training, reward_training, sft
from daybreak.align.demo import recipe
from daybreak.align.demo.measure import Measured, answered, label_of, measured
from daybreak.align.demo.settings import DemoSettings
from daybreak.align.demo.texts import (
    Example,
    Texts,
    demonstrations,
    examples,
    shuffled,
    write_rows,
    write_shards,
)
from daybreak.align.ppo_run import train_ppo
from daybreak.align.reward_model import load_reward_model
from daybreak.align.sampling import Written
from daybreak.checkpoint.config import read_json
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel, load
from daybreak.quickstart.loop import Point as QuickPoint
from daybreak.quickstart.report import Clock
from daybreak.quickstart.run import quickstart
from daybreak.quickstart.settings import Settings as QuickSettings
from daybreak.train.records import Screen
from daybreak.train.tuning_run import TuningOutcome, tune

RESULT, SECONDS = "result.json", "seconds.json"
MODELS = ("base", "sft", "dpo", "ppo", "ppo-ptx")
"""What is compared, in the order in which it is shown."""
FEWEST = 8
"""Rankings that a reward model needs to be worth trying."""
SHOWN = 4
"""Held-out prompts whose answers are kept for people to read."""


class Stopped(Exception):
    """A stage was ended by a signal, after a checkpoint."""


@dataclass(frozen=True)
class Made:
    """What the models learn from, and what they are measured on."""

    demonstrations: list[Example]
    ranked: list[Example]
    """Functions whose first lines are answered several times, to be ranked."""
    asked: list[str]
    """Prompts of PPO."""
    held_out: list[Example]


class Stages:
    """One seed."""

    def __init__(self, settings: DemoSettings, seed: int, folder: Path, texts: Texts, screen: Screen) -> None:
        self.settings, self.seed, self.folder = settings, seed, folder
        self.texts, self.screen = texts, screen
        self.seconds: dict[str, float] = read_json(folder / SECONDS) if (folder / SECONDS).is_file() else {}
        """Wall time by stage, of all sessions."""

    def run(self) -> dict[str, Any]:
        """All stages; the result, which is also left in `RESULT`. Raises `Stopped`."""
        if (self.folder / RESULT).is_file():
            return read_json(self.folder / RESULT)
        base = self._base()
        made = self._made(base)
        with self._stage("sft"):
            self._sft(made)
        with self._stage("rankings"):
            facts = self._rank(made)
        with self._stage("reward"):
            accuracy = self._reward()
        with self._stage("ppo"):
            self._ppo("ppo")
        with self._stage("ppo-ptx"):
            self._ppo("ppo-ptx")
        with self._stage("dpo"):
            self._dpo()
        with self._stage("measuring"):
            found = self._measure(made)
        lengths = {"demonstrations": len(made.demonstrations), "held_out_prompts": len(made.held_out)}
        result = {**found, "reward_accuracy": accuracy, "rankings": facts, **lengths, "seconds": self.seconds}
        (self.folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return result

    def at(self, name: str) -> Path:
        """The model folder of a stage."""
        if name == "base":
            return Path(self.settings.model) if self.settings.model else self.folder / "base"
        return self.folder / name / "model"

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.screen.say(f"seed {self.seed}: {name}")
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / SECONDS).write_text(json.dumps(self.seconds, indent=2) + "\n", encoding="utf-8")

    def _base(self) -> LanguageModel:
        """What everything starts from."""
        if self.settings.model is None and not (self.at("base") / "config.json").is_file():
            with self._stage("base"):
                watch = _Watch(self.screen)
                given = QuickSettings(
                    steps=self.settings.amount(recipe.BASE, 20),
                    seed=self.seed,
                    samples=8,
                    source=self.settings.source,
                )
                if not quickstart(given, self.at("base"), watch, Clock(watch), force=True).finished:
                    raise Stopped
        model = load(self.settings.model or str(self.at("base")))
        if model.tokenizer is None or model.tokenizer.bos_id is None or model.tokenizer.eos_id is None:
            raise DaybreakError(
                f"{self.at('base')} has no tokenizer with tokens that texts begin and end with; leave "
                "--model out"
            )
        return model

    def _made(self, base: LanguageModel) -> Made:
        """Drawn by the seed; the same at every start."""
        settings, tokenizer = self.settings, base.tokenizer
        assert tokenizer is not None
        room = base.architecture.context - settings.room
        training = shuffled(examples(self.texts.training, tokenizer, settings.room, room), self.seed)
        held_out = shuffled(examples(self.texts.validation, tokenizer, settings.room, room), self.seed)
        shown = demonstrations(training)[: settings.amount(recipe.DEMONSTRATIONS, 32)]
        known = {one.prompt for one in training}
        made = Made(
            demonstrations=shown,
            ranked=training[-settings.amount(recipe.RANKED, 24) :],
            asked=[one.prompt for one in training],
            held_out=[one for one in held_out if one.prompt not in known][
                : settings.amount(recipe.HELD_OUT, 16)
            ],
        )
        self._write(base, made)
        return made

    def _write(self, base: LanguageModel, made: Made) -> None:
        write_rows(
            self.folder / "demonstrations.jsonl",
            ({"prompt": one.prompt, "completion": one.answer} for one in made.demonstrations),
        )
        write_rows(self.folder / "prompts.jsonl", ({"prompt": prompt} for prompt in made.asked))
        write_rows(self.folder / "held_out.jsonl", ({"prompt": one.prompt} for one in made.held_out))
        if not (self.folder / "mix" / "manifest.json").is_file():
            assert base.tokenizer is not None
            write_shards(self.folder / "mix", self.texts, base.tokenizer, base.architecture.context)

    def _sft(self, made: Made) -> None:
        given = recipe.sft(str(self.at("base")), self.folder / "demonstrations.jsonl", self.seed)
        if not self._done("sft"):
            _finished(tune(sft.job_of(load(given.start), given), given, self.folder / "sft", self.screen))

    def _rank(self, made: Made) -> dict[str, Any]:
        """Several answers of the tuned model to each prompt, labelled. What was cut off is left out: a reward
        model reads every answer as an ended one."""
        file = self.folder / "rankings.jsonl"
        if not file.is_file():
            model, prompts = load(self.at("sft")), [one.prompt for one in made.ranked]
            shown = {one.prompt: one.answer for one in made.demonstrations}
            written = answered(model, prompts, self.settings.room, self.seed, recipe.ANSWERS)
            rows = list(_ranked(written, shown))
            if len(rows) < FEWEST:
                raise DaybreakError(
                    f"the answers to only {len(rows)} of {len(prompts)} prompts differ in what the "
                    "labeller says, too few to rank: the model is too weak still; set --minutes higher, or "
                    "give a better --model"
                )
            write_rows(file, rows)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {"prompts": len(rows), "answers": sum(len(row["answers"]) for row in rows)}

    def _reward(self) -> float | None:
        given = recipe.reward(str(self.at("sft")), self.folder / "rankings.jsonl", self.seed)
        if not self._done("reward"):
            job = reward_training.job_of(load(given.start), given)
            _finished(tune(job, given, self.folder / "reward", self.screen))
        held_out = read_json(self.at("reward") / "reward.json").get("held_out")
        return None if held_out is None else float(held_out["accuracy"])

    def _ppo(self, name: str) -> None:
        iterations = self.settings.amount(recipe.ITERATIONS, 2)
        given = recipe.ppo(
            str(self.at("sft")),
            self.folder / "prompts.jsonl",
            str(self.at("reward")),
            self.folder / "mix" if name == "ppo-ptx" else None,
            iterations,
            self.settings.room,
            self.seed,
        )
        if not self._done(name) and train_ppo(given, self.folder / name, self.screen).ending == "stopped":
            raise Stopped

    def _dpo(self) -> None:
        given = recipe.dpo(str(self.at("sft")), self.folder / "rankings.jsonl", self.seed)
        if not self._done("dpo"):
            job = preference_training.job_of(load(given.start), load(given.start), given)
            _finished(tune(job, given, self.folder / "dpo", self.screen))

    def _measure(self, made: Made) -> dict[str, Any]:
        self.screen.phase("measuring")
        prompts = [one.prompt for one in made.held_out]
        reward, reference = load_reward_model(self.at("reward")), load(self.at("sft"))
        figures: dict[str, Measured] = {}
        samples: dict[str, dict[str, str]] = {prompt: {} for prompt in prompts[:SHOWN]}
        for name in MODELS:
            model = load(self.at(name))
            far = None if name in ("base", "sft") else reference
            own = (model, prompts, self.texts, self.settings.room, self.seed, reward, far)
            figures[name], written = measured(*own)
            for one in written[:SHOWN]:
                assert isinstance(one.prompt, str)
                samples[one.prompt][name] = one.words
        return {"models": {name: asdict(one) for name, one in figures.items()}, "samples": samples}

    def _done(self, name: str) -> bool:
        return (self.at(name) / "config.json").is_file()


def _ranked(written: list[Written], shown: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A row for each prompt whose answers differ in their labels."""
    answers: dict[str, dict[str, float]] = {}
    for one in written:
        assert isinstance(one.prompt, str)
        if one.ended and one.words.strip():
            answers.setdefault(one.prompt, {})[one.words] = label_of(one).score
    for prompt, own in answers.items():
        if len(set(own.values())) > 1:
            row: dict[str, Any] = {"prompt": prompt, "answers": list(own), "scores": list(own.values())}
            yield {**row, "demonstration": shown[prompt]} if prompt in shown else row


def _finished(outcome: TuningOutcome) -> None:
    if outcome.ending == "stopped":
        raise Stopped


class _Watch:
    """The quickstart on the screen of a training run."""

    def __init__(self, screen: Screen) -> None:
        self.phase: Callable[[str], None] = screen.phase

    def progress(self, done: int, total: int) -> None:
        """Of a phase; not shown."""

    def point(self, point: QuickPoint) -> None:
        """Of training; not shown."""
