"""What a model can be told about its adapters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daybreak.checkpoint import peft_read, peft_write
from daybreak.families.family import Family
from daybreak.model import adapters, merging
from daybreak.model.decoder import Decoder
from daybreak.model.lora_settings import LoraSettings
from daybreak.text.chat import take_template
from daybreak.text.tokenizer import Tokenizer


class Adapted:
    """A model whose maps low-rank adapters may correct, several of them by name (LoRA, arXiv 2106.09685)."""

    family: Family
    decoder: Decoder
    config: dict[str, Any]
    tokenizer: Tokenizer | None

    @property
    def adapters(self) -> list[str]:
        """The names of all adapters."""
        return adapters.names(self.decoder)

    @property
    def adapter(self) -> str | None:
        """The name of the one in use, beside the weights or merged into them."""
        return merging.merged(self.decoder) or adapters.active(self.decoder)

    def add_adapter(
        self, name: str, *, targets: str | Sequence[str] = (), seed: int = 0, **settings: Any
    ) -> None:
        """A fresh adapter, which changes nothing until it is trained; it is the one in use, and everything
        else is frozen. `targets` and `settings` (rank, alpha, dropout, rslora, shared, whole) are fields of
        `daybreak.model.lora_settings.LoraSettings`.
        """
        if targets:
            settings["targets"] = (targets,) if isinstance(targets, str) else tuple(targets)
        adapters.add_lora(self.decoder, LoraSettings(**settings), name, seed)

    def load_adapter(self, folder: str | os.PathLike[str], name: str) -> None:
        """An adapter from a folder of PEFT's: adapter_config.json and adapter_model.safetensors. It is the
        one in use then. A model without a chat template has the one beside the adapter, in which it was
        taught. Raises `DaybreakError` for one that is not of this model, or not exactly supported.
        """
        peft_read.load(Path(folder), self.family, self.decoder, name)
        if self.tokenizer is not None:
            take_template(self.tokenizer, Path(folder))

    def save_adapter(self, folder: str | os.PathLike[str], name: str, base: str | None = None) -> None:
        """Write an adapter into a folder that PEFT and `load_adapter` open; `base` is what the file calls the
        model, None: what its config.json says.
        """
        source = base or self.config.get("_name_or_path")
        peft_write.save(Path(folder), self.family, self.decoder, name, source)

    def use(self, name: str | None) -> None:
        """Answer with this adapter from now on; None: with none."""
        adapters.use(self.decoder, name)

    def merge(self, name: str) -> None:
        """Put an adapter into the weights, so that it costs nothing any more; `save` then writes an ordinary
        folder with it. Raises `DaybreakError` for weights of few bits.
        """
        merging.merge(self.decoder, name)

    def unmerge(self, name: str) -> None:
        """Restore the weights to the bit; the adapter is used beside them."""
        merging.unmerge(self.decoder, name)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter."""
        adapters.remove(self.decoder, name)
