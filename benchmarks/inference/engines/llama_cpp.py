"""llama.cpp through its C functions, with a context for each size of batch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from benchmarks.inference.engines import Prompts
from benchmarks.llama_functions import BATCH, CACHE_WORDS, CONTEXT, DEFAULTS, FLASH, THREAD_WORDS, library

SEQUENCES = 3
"""The place of n_seq_max among the words of llama_context_params."""
ROOM = 768
"""Tokens of one text: the longest prompt and what is written after it, in whole 256s as llama.cpp wants."""
AT_ONCE = 2048
"""Tokens of a batch: 16 prompts of 128."""


class LlamaCpp:
    def __init__(self, format: str, threads: int) -> None:
        self._call = library()
        self._call.llama_backend_init()
        self._exact, self._threads = format == "F32", threads
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._batch = self._call.llama_batch_init(AT_ONCE, 0, 1)

    def load(self, path: str) -> None:
        model = self._call.llama_model_load_from_file(path.encode(), self._call.llama_model_default_params())
        if model is None:
            raise ValueError("llama.cpp did not load the file")
        self._model = ctypes.c_void_p(model)
        vocabulary = ctypes.c_void_p(self._call.llama_model_get_vocab(self._model))
        self._rows = self._call.llama_vocab_n_tokens(vocabulary)
        self._context(1)

    def _context(self, sequences: int) -> ctypes.c_void_p:
        """With an empty cache for so many texts. As it comes, keys and values are float16; where float32 is
        measured, they are float32, as in the other engines."""
        if sequences not in self._contexts:
            settings = self._call.llama_context_default_params()
            assert all(settings.words[place] == value for place, value in DEFAULTS.items()), "another llama.h"
            room = ROOM if sequences == 1 else 256
            settings.words[CONTEXT], settings.words[BATCH] = sequences * room, AT_ONCE
            settings.words[SEQUENCES] = sequences
            for place in THREAD_WORDS:
                settings.words[place] = self._threads
            if self._exact:
                settings.words[FLASH] = 0
                for place in CACHE_WORDS:
                    settings.words[place] = 0
            made = self._call.llama_init_from_model(self._model, settings)
            if made is None:
                raise ValueError(f"llama.cpp made no context for {sequences} texts")
            self._contexts[sequences] = ctypes.c_void_p(made)
        return self._contexts[sequences]

    def generate(self, prompts: Prompts, new: int) -> list[list[int]]:
        context = self._context(len(prompts))
        memory = ctypes.c_void_p(self._call.llama_get_memory(context))
        self._call.llama_memory_clear(memory, ctypes.c_bool(False))
        written: list[list[int]] = [[] for _ in prompts]
        step: Prompts = prompts
        past = 0
        for _ in range(new):
            chosen = self._step(context, step, past)
            past += len(step[0])
            step = [[token] for token in chosen]
            for text, token in zip(written, chosen, strict=True):
                text.append(token)
        return written

    def _step(self, context: ctypes.c_void_p, tokens: Prompts, past: int) -> list[int]:
        """Read further tokens of every text; the likeliest next one of each."""
        batch, count, lasts = self._batch, 0, []
        for number, text in enumerate(tokens):
            for place, token in enumerate(text):
                batch.token[count], batch.position[count] = token, past + place
                batch.sequences[count], batch.sequence[count][0] = 1, number
                batch.wanted[count] = place == len(text) - 1
                count += 1
            lasts.append(count - 1)
        batch.count = count
        if self._call.llama_decode(context, batch) != 0:
            raise ValueError("llama_decode failed")
        return [int(self._logits(context, last).argmax()) for last in lasts]

    def _logits(self, context: ctypes.c_void_p, place: int) -> np.ndarray[Any, Any]:
        found = self._call.llama_get_logits_ith(context, place)
        return np.ctypeslib.as_array(found, (self._rows,))
