"""`daybreak pretrain` from start to end: begin or go on, train, leave an ordinary model folder."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from daybreak.data.loader import Loader
from daybreak.data.token_shards import TokenSet
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Objective
from daybreak.objectives.summed import loss_sum
from daybreak.train import parallel, run_folder
from daybreak.train.checkpoints import Checkpoints
from daybreak.train.compiled import compiled
from daybreak.train.course import Course
from daybreak.train.evaluation import Evaluation, Score
from daybreak.train.export import export
from daybreak.train.optimizers import optimizers
from daybreak.train.precision import Loss, faster_dtype, in_dtype
from daybreak.train.records import Records, Screen
from daybreak.train.repeatable import repeatable
from daybreak.train.session import Ending, Progress, Session
from daybreak.train.settings import CheckpointSettings, Settings
from daybreak.train.step import batches, share, shrink_embedding_gradient
from daybreak.train.stop import Stop, stop_on_signals
from daybreak.train.subject import context_of, model_of, objective_of
from daybreak.train.watch import Watch
from daybreak.train.world import World, world

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    folder: Path
    ending: Ending
    signal: int | None
    """What stopped it."""
    step: int
    steps: int
    loss: float | None
    """Of the last steps; None if there was nothing left to do."""
    scores: dict[str, Score]
    exported: Path | None
    """The model as a Hugging Face folder."""


def pretrain(given: Settings, folder: Path, screen: Screen) -> Outcome:
    """Train as `given` says in the run folder `folder`; where a run stands there, go on with it from its
    newest checkpoint, and from there on bit for bit as if it had never been interrupted (on one process).

    SIGINT and SIGTERM end it after a checkpoint. Raises `DaybreakError` for settings, data or a folder that
    do not fit, for a run that its watcher ends, and where a checkpoint cannot be written.
    """
    with world(given.parallel) as here, stop_on_signals() as stop:
        if not here.main:
            return _train(given, folder, here, stop, screen)
        with run_folder.locked(folder):
            return _train(given, folder, here, stop, screen)


def opened(settings: Settings, split: str = "training", verify: bool = False) -> TokenSet:
    """The data that the settings name; `verify` compares all checksums. Raises `DaybreakError` where they
    name none."""
    if settings.data.folder is None:
        raise DaybreakError("no data is named; give --data with a folder that `daybreak data build` wrote")
    return TokenSet.open(settings.data.folder, split, verify)


def _train(given: Settings, folder: Path, here: World, stop: Stop, screen: Screen) -> Outcome:
    before = run_folder.stored(folder)
    settings = run_folder.settled(given, before, lambda: _fast_dtype(here))
    with repeatable(settings.deterministic and (settings.precision.compile or here.device.type != "cpu")):
        return _trained(settings, before, folder, here, stop, screen)


def _trained(
    settings: Settings, before: Settings | None, folder: Path, here: World, stop: Stop, screen: Screen
) -> Outcome:
    changes = {} if before is None else run_folder.continued(before, settings, folder)
    if before is None and settings.data.verify and here.main:
        screen.phase("checking the data")
        opened(settings, verify=True), opened(settings, "validation", verify=True)
    session = _session(settings, folder, here, screen)
    records = session.records
    last = _resume(session)
    if here.main and before is None:
        run_folder.keep(
            folder, settings, session.course.context
        )  # the first file: it says that this is a run
    records.begin(session.course, last, changes)
    if here.main and before is not None:
        run_folder.keep(
            folder, settings, session.course.context
        )  # not before the logbook has told what is changed
    try:
        ending = session.train(stop)
        exported = _finish(session, folder, last) if ending == "finished" else None
    except BaseException as error:
        with contextlib.suppress(Exception):  # what is being written is finished, if it can be
            session.checkpoints.wait()
        records.failed(session.progress, error)
        raise
    records.ended(session.progress, ending, stop.signal if ending == "stopped" else None)
    progress, scores = session.progress, records.last_scores
    return Outcome(
        folder, ending, stop.signal, progress.step, session.course.steps, records.loss, scores, exported
    )


def _session(settings: Settings, folder: Path, here: World, screen: Screen) -> Session:
    data = opened(settings)
    model = model_of(settings, data)
    context = context_of(settings, model.architecture, data)
    course = Course(settings, context)
    _check_shares(course, here)
    records = Records(folder, settings, model, here, screen)
    loader = Loader(data, context, settings.seed, settings.data.weights, settings.data.masking)
    objective = objective_of(settings, model)
    parallel.parallelise(model.decoder, here, settings.precision.recompute)
    if settings.optimizer.embedding_shrink != 1.0:
        shrink_embedding_gradient(model.decoder, settings.optimizer.embedding_shrink)
    dtype = DTYPES[settings.precision.dtype]
    plain = in_dtype(loss_sum, dtype, here.device.type)
    model.decoder.train()
    return Session(
        settings=settings,
        world=here,
        model=model,
        objective=objective,
        loss_of=_compiled(plain, settings, model.decoder, (loader, objective, course), here, records),
        plain_loss_of=plain,
        optimizers=optimizers(model.decoder, settings.optimizer, _products(dtype)),
        average=_average(model.decoder) if settings.ema is not None else None,
        course=course,
        loader=loader,
        evaluation=_evaluation(settings, context, here, records),
        checkpoints=Checkpoints(folder / run_folder.CHECKPOINTS, _kept(settings), records.note),
        watch=Watch(settings.watch),
        records=records,
        progress=Progress(scale=settings.precision.loss_scale if dtype == torch.float16 else None),
    )


def _resume(session: Session) -> int:
    """Go on from the newest checkpoint that is whole, if there is one; returns the steps done so far."""
    step = session.checkpoints.newest()
    if step is not None:
        session.watch.restore(session.restore(step)["watch"])
    return session.progress.step


def _finish(session: Session, folder: Path, resumed_at: int) -> Path:
    """Once all steps are done: the last scores, and the model as a folder that others open."""
    every, steps = session.settings.evaluation.every, session.course.steps
    target = folder / run_folder.EXPORT
    if resumed_at == steps and (target / "config.json").is_file():
        return target
    if every and session.average is not None:
        session.records.note("the last evaluation is that of the moving average, which becomes the model")
        session.evaluate(averaged=True)
    elif every and (steps % every or resumed_at == steps):
        session.evaluate()
    export(session.model, target, session.average)
    return target


def _fast_dtype(here: World) -> str:
    """As rank 0 finds it: they must not differ."""
    names = list(DTYPES)
    fast = torch.bfloat16 if here.device.type != "cpu" or not here.main else faster_dtype()
    number = names.index(str(fast).removeprefix("torch."))
    return names[int(here.agree(number if here.main else 0))]


def _products(dtype: torch.dtype) -> torch.dtype:
    """Of an optimizer, which has no loss scale that would keep small numbers in float16."""
    return torch.bfloat16 if dtype == torch.float16 else dtype


def _kept(settings: Settings) -> CheckpointSettings:
    """Where spikes are answered by going back, as many checkpoints as that needs."""
    checkpoints, watch = settings.checkpoints, settings.watch
    if watch.policy != "roll_back":
        return checkpoints
    needed = -(-watch.back // checkpoints.every) + 1
    return dataclasses.replace(checkpoints, keep=max(checkpoints.keep, needed))


def _check_shares(course: Course, here: World) -> None:
    for stage in course.stages:
        if stage.size % here.data_ranks:
            raise DaybreakError(
                f"a batch of {stage.size} sequences cannot be divided evenly among {here.data_ranks} "
                "processes; change batch.sequences (or batch.ramp_from and ramp_by)"
            )


def _compiled(
    plain: Loss,
    settings: Settings,
    decoder: Decoder,
    reading: tuple[Loader, Objective, Course],
    here: World,
    records: Records,
) -> Loss:
    """The loss as one compiled program, where the run is on one process and the machine can."""
    if not settings.precision.compile or here.mesh is not None:
        return plain
    loader, objective, course = reading
    numbers = share(course.batch(0), 0, here)[: settings.batch.micro]
    example = batches(objective, loader.windows(numbers), numbers, settings.batch.micro, here.device)[0]
    found = compiled(plain, decoder, example)
    if found.problem is not None:
        records.note(f"the step is not compiled: {found.problem}")
    return found.loss_of


def _evaluation(settings: Settings, context: int, here: World, records: Records) -> Evaluation | None:
    if not settings.evaluation.every:
        return None
    data = opened(settings, "validation")
    sequences, micro = settings.evaluation.sequences, settings.batch.micro
    found = Evaluation(data, context, sequences, micro, here, settings.data.masking)
    if found.left_out:
        names = ", ".join(found.left_out)
        records.note(f"not evaluated, as their held-out text is shorter than a sequence: {names}")
    return found


def _average(decoder: Decoder) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in decoder.named_parameters()}
