"""CTranslate2's Generator. Its tokens are strings: here the numbers in decimals, see `ctranslate2_folder`."""

from __future__ import annotations

import ctranslate2

from benchmarks.inference.engines import Prompts


class CTranslate2:
    def __init__(self, format: str, threads: int) -> None:
        self._format, self._threads = format, threads

    def load(self, path: str) -> None:
        self._generator = ctranslate2.Generator(
            path, compute_type=self._format, inter_threads=1, intra_threads=self._threads
        )

    def generate(self, prompts: Prompts, new: int) -> list[list[int]]:
        results = self._generator.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            min_length=new,  # forbids the end until then
            max_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]
