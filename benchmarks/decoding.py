"""Decoding speed beside transformers' generate with its cache: the same weights, in turns, medians.

    python benchmarks/decoding.py --size gpt2 --dtype bfloat16 --batch 8 --new 64 --rounds 5 --device cpu

A round lets each side write `new` tokens after the same prompts. The time of the prompt (that of a call for
one token) is taken off, so the numbers are new tokens per second of decoding alone. Greedy unless --sample.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

import daybreak
from daybreak.engine.generate import generate
from daybreak.families import find_size


def both(size: str, dtype: str, device: str) -> tuple[daybreak.LanguageModel, Any]:
    """Both sides' models, loaded from the same folder with random weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = find_size(size)
    assert found is not None, f"no published size {size}"
    with tempfile.TemporaryDirectory() as folder:
        daybreak.create(found[0].name, size, dtype=dtype).save(folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        ours = daybreak.load(folder, dtype=dtype, device=device)
    return ours, theirs.to(device).eval()


def seconds(call: Callable[[], Any], device: str) -> float:
    """Wall time of one call, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="gpt2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", action="store_true", help="top-k 50 and top-p 0.95 at temperature 0.8")
    options = parser.parse_args()
    model, theirs = both(options.size, options.dtype, options.device)
    shape = (options.batch, options.prompt)
    prompts = torch.randint(10, 1000, shape, generator=torch.Generator().manual_seed(0))
    chance = {"temperature": 0.8, "top_k": 50, "top_p": 0.95} if options.sample else {}
    ids = prompts.to(options.device)

    def our_side(new: int) -> Any:
        return generate(model, prompts, max_new_tokens=new, ignore_eos=True, **(chance or {"temperature": 0}))

    def their_side(new: int) -> Any:
        end = {"eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(ids)
        return theirs.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=options.sample, **chance, **end
        )

    times: dict[str, list[float]] = {"daybreak": [], "transformers": []}
    for number in range(options.rounds + 1):
        for name, side in (("daybreak", our_side), ("transformers", their_side)):
            first = seconds(lambda side=side: side(1), options.device)  # type: ignore[misc]
            whole = seconds(lambda side=side: side(options.new), options.device)  # type: ignore[misc]
            if number:  # the first round warms up
                times[name].append(options.batch * (options.new - 1) / (whole - first))
    medians = {name: statistics.median(speeds) for name, speeds in times.items()}
    best = {name: max(speeds) for name, speeds in times.items()}
    told: dict[str, Any] = {**vars(options), "threads": torch.get_num_threads()}
    if not options.sample:
        written = their_side(options.new)[:, options.prompt :].tolist()
        told["same text"] = [result.tokens for result in our_side(options.new)] == written
    told["tokens per second"] = {name: round(speed, 1) for name, speed in medians.items()}
    told["best round"] = {name: round(speed, 1) for name, speed in best.items()}
    told["ratio"] = round(medians["daybreak"] / medians["transformers"], 2)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
