"""A model of OPT's family whose texts do not start with bos keeps its own special tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import daybreak

SMALL = {"layers": 1, "width": 16, "heads": 2, "inner": 24, "context": 32}


@pytest.mark.parametrize(("size", "starts", "bos"), [("opt-125m", True, 2), ("galactica-125m", False, 0)])
def test_bos_is_put_in_front_only_where_training_did(
    size: str, starts: bool, bos: int, tmp_path: Path
) -> None:
    model = daybreak.create("opt", size, vocabulary=300, **SMALL)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["bos_token_id"] == bos
    letters = ["<s>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": letters[bos], "eos_token": "</s>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    loaded = daybreak.load(tmp_path)
    assert loaded.tokenizer is not None
    assert (loaded.tokenizer.encode("ab")[0] == bos) == starts
