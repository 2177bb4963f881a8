"""A recurrent language model as people meet it, with what a transformer's `LanguageModel` offers as far as
that makes sense for an LSTM: `logits`, `generate`, `stream`, `save`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from daybreak import families
from daybreak.architecture import Alibi
from daybreak.checkpoint import recurrent as weights
from daybreak.checkpoint.config import CONFIG, GENERATION, read_config, read_generation
from daybreak.checkpoint.save import to_json
from daybreak.engine.continuation import Continuation, Result
from daybreak.engine.generate import continuations, seed_of, settings_of
from daybreak.engine.prompts import Prompts, prepare
from daybreak.engine.recurrent import write
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError
from daybreak.families.recurrent import Lstm, RecurrentFamily
from daybreak.model.awd_lstm import AwdLstm, initialise_lstm
from daybreak.text.words import Words


@dataclass(eq=False, repr=False)
class RecurrentModel:
    """What `daybreak.load` and `daybreak.create` return for a recurrent family."""

    family: RecurrentFamily
    decoder: AwdLstm
    tokenizer: Words | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """config.json as it was read: keys that are not the shape's survive loading and saving."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was read."""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a classifier's folder the tensors of its head."""

    def __repr__(self) -> str:
        shape = self.architecture
        return f"RecurrentModel({self.family.name}, {shape.layers} layers, width {shape.width}, {self.dtype})"

    @property
    def architecture(self) -> Lstm:
        return self.decoder.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.tokens.weight.dtype

    @torch.no_grad()
    def logits(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, length] int64 -> [batch, length, vocabulary] float32; where `mask` is false there is no
        token. Dropouts are off."""
        vocabulary = self.architecture.vocabulary
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise DaybreakError(f"a token id is outside the model's, which go from 0 to {vocabulary - 1}")
        self.decoder.eval()
        return self.decoder.logits(tokens, mask)

    def generate(
        self,
        prompts: Prompts,
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> list[Result]:
        """Continue one prompt or many, given as texts or lists of token ids; `settings` are fields of
        `Sampling`. Raises `DaybreakError` for a model that reads backwards, and as a transformer's does.
        """
        texts, live, seed = self._texts(prompts, sampling, settings, defaults, live=False)
        for done, text in enumerate(texts, 1):
            for _ in write(self.decoder, text, live, seed):
                pass
            if progress is not None:
                progress(done, len(texts))
        return [text.result(text.take()) for text in texts]

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        defaults: bool = True,
        **settings: Any,
    ) -> Iterator[str]:
        """The text that `generate` gives for one prompt, piece by piece as it comes."""
        if self.tokenizer is None:
            raise DaybreakError("the model has no vocabulary, so there is no text to stream; use generate")
        texts, live, seed = self._texts([prompt], sampling, settings, defaults, live=True)  # type: ignore[arg-type]
        if len(texts) != 1:
            raise DaybreakError("a stream is one text; use generate for several samples")
        for _ in write(self.decoder, texts[0], live, seed):
            if piece := texts[0].take():
                yield piece

    def _texts(
        self,
        prompts: Prompts,
        sampling: Sampling | None,
        settings: dict[str, Any],
        defaults: bool,
        live: bool,
    ) -> tuple[list[Continuation], int, int]:
        if self.head:
            raise DaybreakError(
                "this is a classifier, and writes no text; take the language model it is made from"
            )
        if self.architecture.direction == "backward":
            raise DaybreakError(
                "this model reads texts from their end, so it cannot continue one; take a forward one"
            )
        self.decoder.eval()
        asked = cast(Any, _Asked(self))
        chosen = settings_of(asked, sampling, settings, defaults)
        texts = continuations(asked, prepare(asked, prompts), chosen, live=live or bool(chosen.stop))
        rows = self.architecture.vocabulary
        known = rows if self.tokenizer is None else min(rows, self.tokenizer.vocabulary)
        return texts, known, seed_of(chosen)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that `daybreak.load` opens: config.json, the vocabulary and model.safetensors, whose
        tensors have fastai's names."""
        weights.save(Path(folder), self.family, self.decoder, self.texts(), self.head)

    def texts(self) -> dict[str, bytes]:
        """The files of a saved folder beside its weights, by name."""
        config = {**self.family.special_tokens, **self.config, **self.family.write(self.architecture)}
        texts = {CONFIG: to_json({**config, "dtype": str(self.dtype).removeprefix("torch.")})}
        if self.generation:
            texts[GENERATION] = to_json(self.generation)
        return texts if self.tokenizer is None else {**texts, **self.tokenizer.files}


class _Asked:
    """What the front of generation asks of a model, which is written for transformers: this one has no blanks
    and no table of positions that could end."""

    def __init__(self, model: RecurrentModel) -> None:
        self.family, self.tokenizer = model.family, model.tokenizer
        self.config, self.generation = model.config, model.generation
        self.architecture = _Endless(model.architecture.vocabulary, model.architecture.context)


@dataclass(frozen=True)
class _Endless:
    vocabulary: int
    context: int
    blanks: None = None
    positions: Alibi = field(default_factory=Alibi)


def create_recurrent(
    page: RecurrentFamily, size: str | None, seed: int, words: Words | None = None, **changes: Any
) -> RecurrentModel:
    """A model with fresh weights; `changes` are fields of `Lstm`."""
    if words is not None:
        changes = {"vocabulary": words.vocabulary, **changes}
    decoder = AwdLstm(page.shape(size, **changes))
    initialise_lstm(decoder, seed)
    return RecurrentModel(page, decoder.eval(), words)


def is_recurrent_folder(folder: Path) -> bool:
    """A folder of ours with a recurrent model, or fastai's: weights as .pth and a vocabulary beside them."""
    if (folder / CONFIG).is_file():
        return families.recurrent(str(read_config(folder)["model_type"])) is not None
    return bool(_fastai_files(folder)[0])


def load_recurrent(folder: Path) -> RecurrentModel:
    """The model in a folder of ours, or of fastai's. Raises `DaybreakError` for what is damaged."""
    if not (folder / CONFIG).is_file():
        return _load_fastai(folder)
    config = read_config(folder)
    page = families.recurrent(config["model_type"])
    assert page is not None
    shape = page.read(config)
    words = Words.load(folder, page)
    if words is not None and words.vocabulary > shape.vocabulary:
        raise DaybreakError(
            f"{folder}: the vocabulary has {words.vocabulary} words, but the model {shape.vocabulary} rows; "
            "take both from the same model"
        )
    decoder, head = weights.fill(page, shape, folder), weights.head_of(folder)
    return RecurrentModel(page, decoder, words, config, read_generation(folder), head)


def load_fastai(file: Path, vocabulary: Path | None = None, direction: str = "forward") -> RecurrentModel:
    """A language model or an encoder as fastai saved it, with its vocabulary (.pkl, .json or .txt)."""
    page = next(families.recurrents())
    words = None if vocabulary is None else Words.read(vocabulary, page)
    decoder = weights.read_fastai(page, file, direction)
    if words is not None and words.vocabulary != decoder.shape.vocabulary:
        raise DaybreakError(
            f"{vocabulary} has {words.vocabulary} words, but {file} {decoder.shape.vocabulary} rows; "
            "give the vocabulary that was saved with the weights"
        )
    return RecurrentModel(page, decoder, words)


def _load_fastai(folder: Path) -> RecurrentModel:
    states, vocabularies = _fastai_files(folder)
    if len(states) != 1 or len(vocabularies) > 1:
        found = ", ".join(file.name for file in (*states, *vocabularies))
        raise DaybreakError(
            f"{folder} holds {found}; put one file of weights (.pth) and its vocabulary (.pkl) into a folder"
        )
    direction = "backward" if "bwd" in states[0].stem else "forward"  # as fastai calls its own
    return load_fastai(states[0], next(iter(vocabularies), None), direction)


def _fastai_files(folder: Path) -> tuple[list[Path], list[Path]]:
    if not folder.is_dir():
        return [], []
    return sorted(folder.glob("*.pth")), sorted(folder.glob("*.pkl"))
