"""What a run read at a step: from its figures the sequences, from the data's order their documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daybreak.data.loader import Loader, Read
from daybreak.data.token_shards import TokenSet
from daybreak.errors import DaybreakError
from daybreak.train import metrics, run_folder
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.settings import CheckpointSettings, Settings
from daybreak.train.subject import architecture, context_of


@dataclass(frozen=True, eq=False)
class Replay:
    """The data of one step."""

    step: int
    sequences: range
    """Their numbers in the data's order."""
    event: str | None
    """What the watcher saw in the step."""
    documents: list[Read]
    loader: Loader
    data: TokenSet

    def text(self, sequence: int) -> str:
        """What stands in one of the step's sequences. Raises `DaybreakError` for another one."""
        if sequence not in self.sequences:
            first, last = self.sequences[0], self.sequences[-1]
            raise DaybreakError(f"step {self.step} read the sequences {first} to {last}, not {sequence}")
        tokens = self.loader.windows([sequence]).tokens[0, :-1].tolist()
        return self.data.tokenizer().decode(tokens, skip_special=False)


def replay(run: Path, step: int, folder: Path | None = None) -> Replay:
    """What step `step` (from 1) of the run in `run` read; `folder` is where its data is now, if not where it
    was.

    Raises `DaybreakError` where there is no run or no such step, and for data that is not what was read.
    """
    settings = run_folder.stored(run) if run.is_dir() else None
    if settings is None:
        raise DaybreakError(f"{run} is no run; give a folder that `daybreak pretrain` wrote")
    line = _line_of(run, step)
    settings = replace(settings, data=replace(settings.data, folder=folder or settings.data.folder))
    data, loader = _loader(settings, run)
    sequences = range(line["position"], line["position"] + line["sequences"])
    return Replay(step, sequences, line["event"], loader.documents(sequences), loader, data)


def _line_of(run: Path, step: int) -> dict[str, Any]:
    """The step's line in the run's figures, where every step that holds stands once."""
    file = run / metrics.FILE
    if not file.is_file():
        raise DaybreakError(f"{file} is missing, so nobody knows what the run read")
    last, gone = 0, ""
    for _, text in metrics.lines_backwards(file):
        line = metrics.parsed(text)
        if line is None:
            continue
        if "position" in line:
            if line["step"] == step:
                return line
            last = max(last, line["step"])
        elif "rolled_back" in line and line["step"] < step <= line["rolled_back"]["from"]:
            gone = gone or (
                f" (it went back from step {line['rolled_back']['from']} to step {line['step']}, after a "
                f"{line['rolled_back']['event']}; {run / 'logbook.md'} names the documents)"
            )
    raise DaybreakError(f"step {step} is not among the steps 1 to {last} of {run}{gone}")


def _loader(settings: Settings, run: Path) -> tuple[TokenSet, Loader]:
    chosen = settings.data
    assert chosen.folder is not None  # the run could not have begun
    data = TokenSet.open(chosen.folder)
    context = chosen.context or context_of(settings, architecture(settings, data), data)
    loader = Loader(data, context, settings.seed, chosen.weights, chosen.masking)
    read = _fingerprint(run)
    if read not in (None, loader.fingerprint):
        raise DaybreakError(
            f"{chosen.folder} is not the data that {run} read, or has been built anew since; name the "
            "folder where it is now with --data"
        )
    return data, loader


def _fingerprint(run: Path) -> str | None:
    """Of the data's order, as the run's checkpoints know it; None before the first one."""
    kept = Checkpoints(run / run_folder.CHECKPOINTS, CheckpointSettings(), lambda line: None)
    steps = kept.steps()
    return kept.numbers(steps[-1])["data"] if steps else None
