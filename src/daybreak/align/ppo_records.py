"""What a run of PPO tells of itself, in the files that other runs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daybreak.train.tuning_records import TuningRecords


class PpoRecords(TuningRecords):
    """A step is an iteration."""

    def iteration(
        self,
        number: int,
        figures: Mapping[str, Any],
        warnings: Mapping[str, str],
        tokens: int,
        seconds: float,
        total: int,
    ) -> None:
        """Iteration `number` is done: its figures, and what they warn of by kind."""
        for text in warnings.values():
            self.note(f"iteration {number:,}: {text}")
        told = {**figures, "warnings": list(warnings)}
        self.step(number, told, figures["policy_gradient_norm"], figures["lr"], tokens, seconds, total)

    def samples(self, iteration: int, written: Sequence[tuple[str, ...]]) -> None:
        """(prompt, the policy's answer, the reference's)."""
        assert self._logbook is not None
        for prompt, own, other in written:
            self._logbook.samples(iteration, [(prompt, own), (f"{prompt} (by the reference)", other)])
            self._metrics.sample(iteration, prompt, own)
            self._metrics.sample(iteration, f"{prompt} (by the reference)", other)
