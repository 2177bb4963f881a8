"""Everything that a run of `daybreak pretrain` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from daybreak import families
from daybreak.errors import DaybreakError
from daybreak.train.amount import Amount


@dataclass(frozen=True)
class ModelSettings:
    """What is trained."""

    family: str = families.FIRST_TO_TRAIN
    """The design; `daybreak families` lists them. Not needed where `start` names a checkpoint."""
    size: str | None = None
    """A published size of the family, such as pythia-70m; None: the family's base."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the architecture that differ from the size: {layers: 4, width: 256, heads: 4}."""
    start: str | None = None
    """Continue from this checkpoint: a folder, a repository of the hub or a published name."""
    revision: str | None = None
    """Branch, tag or commit of `start`."""


@dataclass(frozen=True)
class DataSettings:
    """What it reads."""

    folder: Path | None = None
    """Token shards that `daybreak data build` wrote."""
    context: int | None = None
    """Tokens of a sequence; None: as many as the recipe of the data says, and the model takes."""
    weights: Mapping[str, float] | None = None
    """Shares of the sources by name; None: those of the recipe."""
    verify: bool = True
    """Check the checksums of all shards when a run begins; later starts check their sizes."""
    masking: bool = False
    """Tokens see those of their own document only, and positions count from its start."""


@dataclass(frozen=True)
class BatchSettings:
    """How many sequences make a step."""

    sequences: int = 32
    """Sequences of a step, over all devices together."""
    micro: int = 8
    """Sequences that a device reads at once; gradients are summed until the step's sequences are read."""
    ramp_from: int | None = None
    """Sequences of the first steps; the batch then grows up to `sequences` (GPT-3, app. B)."""
    ramp_by: int | None = None
    """By how many sequences the batch grows at a time; None: by `ramp_from`."""
    ramp_over: str = "0 steps"
    """Over what the batch grows: 4B tokens, 9765625 sequences, 1000 steps."""


@dataclass(frozen=True)
class OptimizerSettings:
    """What moves the weights."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the matrices of the blocks and adamw for the rest."""
    lr: float = 6e-4
    """The highest learning rate (of AdamW)."""
    muon_lr: float = 0.02
    """The highest learning rate of Muon."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings; norms and biases have none."""
    clip: float | None = 1.0
    """The gradient's norm is scaled down to this where it is larger; None: never."""
    embedding_shrink: float = 1.0
    """Factor on the gradient of the token embedding (GLM-130B, section 3.3: 0.1)."""


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over the run."""

    name: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup: str = "1 %"
    """A straight rise from 0: 2000 steps, 375M tokens, 183105 sequences, 1 % of the run."""
    decay: str | None = None
    """cosine, linear: where the floor is reached (100 %); wsd: how long the last fall takes (10 %)."""
    floor: float = 0.1
    """Share of the highest rate that is left at the end."""


@dataclass(frozen=True)
class PrecisionSettings:
    """In which numbers, and how the step is computed."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the matrix products; all else stays float32. auto: the faster of float32 and bfloat16."""
    compile: bool = True
    """Compile the step with torch.compile where this machine can."""
    recompute: bool = False
    """Recompute the blocks' activations while going backwards instead of keeping them."""
    loss_scale: float = 65536.0
    """float16: the loss scale at the start, a factor on the mean loss of a micro-batch."""
    loss_scale_window: int = 1000
    """float16: steps without overflow after which the scale is doubled."""


@dataclass(frozen=True)
class ParallelSettings:
    """How the processes of torchrun or srun share the work; their product is the number of processes."""

    replicas: int = 1
    """Copies of the sharded model (HSDP); gradients are averaged over them."""
    shards: int | None = None
    """Processes over which weights and optimizer state are cut (FSDP2); None: all that are left."""
    tensor: int = 1
    """Processes over which each matrix is cut (tensor parallelism)."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""


@dataclass(frozen=True)
class CheckpointSettings:
    """What a crash cannot take."""

    every: int = 200
    """Steps between two checkpoints."""
    keep: int = 2
    """How many of the newest are kept."""
    keep_every: int | None = None
    """Checkpoints of steps divisible by this are kept for good."""
    background: bool = True
    """Write while training goes on."""


@dataclass(frozen=True)
class WatchSettings:
    """What is done about spikes. A step whose loss or gradient is not finite never changes the weights."""

    policy: Literal["log", "skip", "roll_back"] = "log"
    """log it; skip the batch; or go back, skip the batches up to here and lower the learning rate (OPT)."""
    loss_factor: float = 1.3
    """A loss above its running median by this factor is a spike..."""
    loss_deviations: float = 6.0
    """...if it is also so many standard deviations above it (measured by the median of the distances)."""
    rise_factor: float = 1.2
    """A running median of the loss that is above its lowest by this factor: a rise too slow to be a spike."""
    gradient_factor: float = 10.0
    """A gradient norm above its running median by this factor is a spike."""
    embedding_factor: float = 20.0
    """The same for the norm of the token embedding's gradient (GLM-130B, section 3.3)."""
    smallest_scale: float = 1.0
    """float16: a loss scale below this is an event (OPT: the sign of a run that is diverging)."""
    window: int = 100
    """Steps that the running figures look back on."""
    warmup: int = 20
    """Steps before anything but what is not finite counts as a spike."""
    back: int = 100
    """roll_back: at least so many steps, to the newest checkpoint before that (PaLM: about 100)."""
    lr_factor: float = 0.7
    """roll_back: the learning rate is multiplied by this."""
    most: int = 10
    """So many skipped steps in a row, or returns to one checkpoint, end the run."""

    def __post_init__(self) -> None:
        for name in ("loss_factor", "rise_factor", "gradient_factor", "embedding_factor"):
            if getattr(self, name) <= 1:
                raise DaybreakError(f"watch.{name} is {getattr(self, name)}; it must be above 1")
        if not 2 <= self.warmup <= self.window:
            raise DaybreakError(
                f"watch.warmup is {self.warmup}; it must be from 2 to watch.window, which is {self.window}"
            )
        for name in ("back", "most"):
            if getattr(self, name) < 1:
                raise DaybreakError(f"watch.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.lr_factor <= 1:
            raise DaybreakError(f"watch.lr_factor is {self.lr_factor}; it must be above 0, and at most 1")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured and shown while the run goes on."""

    every: int = 200
    """Steps between two evaluations on the validation split; 0: never."""
    sequences: int = 64
    """Sequences of each source that are scored."""
    prompts: tuple[str, ...] = ()
    """Beginnings that the model continues at every evaluation."""
    sample_tokens: int = 64
    """Length of such a continuation."""


@dataclass(frozen=True)
class LogSettings:
    """Where figures go beside metrics.jsonl and logbook.md."""

    every: int = 10
    """Steps between two lines on the screen, and between two points at TensorBoard and the trackers."""
    tensorboard: bool = True
    """Write TensorBoard's event files to the run folder's `tensorboard`."""
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()
    """Report to these as well, where they are installed."""
    project: str = "daybreak"
    """The project's name at the trackers."""


@dataclass(frozen=True)
class Settings:
    """One training run."""

    length: str = "1000 steps"
    """How long: 1000 steps, 300B tokens, 200M sequences."""
    objective: str = "auto"
    """causal, or for designs with blanks spans, sentences, documents, all, packed; auto: as in the paper."""
    seed: int = 0
    """Of fresh weights, the order of the data, and what the objective draws."""
    deterministic: bool = True
    """The same numbers from the same start, bit for bit, on GPUs as well (slower there)."""
    ema: float | None = None
    """Keep a moving average of the weights with this decay (0.999), and export it."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        for name, text in (
            ("length", self.length),
            ("schedule.warmup", self.schedule.warmup),
            ("schedule.decay", self.schedule.decay or "100 %"),
            ("batch.ramp_over", self.batch.ramp_over),
        ):
            Amount.parse(text, name)
        if Amount.parse(self.length, "length").unit == "%":
            raise DaybreakError("length is the whole run and cannot be a share of it; say steps or tokens")
        for name, least, value in (
            ("batch.sequences", 1, self.batch.sequences),
            ("batch.micro", 1, self.batch.micro),
            ("checkpoints.every", 1, self.checkpoints.every),
            ("checkpoints.keep", 1, self.checkpoints.keep),
            ("log.every", 1, self.log.every),
            ("evaluation.every", 0, self.evaluation.every),
        ):
            if value < least:
                raise DaybreakError(f"{name} is {value}; it must be at least {least}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise DaybreakError(f"ema is {self.ema}; it must be between 0 and 1")
