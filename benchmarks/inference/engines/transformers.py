"""transformers: `generate` with its cache, as its documentation shows it."""

from __future__ import annotations

import torch
import transformers

from benchmarks.inference.engines import Prompts


class Transformers:
    def __init__(self, format: str, threads: int) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._dtype = getattr(torch, format)

    def load(self, path: str) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self._dtype).eval()

    @torch.inference_mode()
    def generate(self, prompts: Prompts, new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        written = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return written[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]
