"""GPT-3 has no published weights and no reference class: it is compared with loops written from the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import daybreak
from daybreak.compare.reference import redraw
from tests.reference.banded import logits as slow_logits


def test_equals_the_loops_in_dense_and_banded_layers(tmp_path: Path) -> None:
    shape = dict(
        vocabulary=61, context=29, layers=4, width=20, heads=5, inner=28, norm_eps=1e-3, windows=(None, 6)
    )
    model = daybreak.create("gpt3", **shape)
    redraw(model.decoder, seed=11)
    model.save(tmp_path / "saved")
    prefix = "transformer."
    weights = {
        name.removeprefix(prefix): tensor.double().numpy()
        for name, tensor in load_file(tmp_path / "saved" / "model.safetensors").items()
    }
    tokens = torch.randint(0, 61, (23,), generator=torch.Generator().manual_seed(1))
    truth = slow_logits(weights, tokens.tolist(), layers=4, heads=5, eps=1e-3, band=6)
    for ours in (model, daybreak.load(tmp_path / "saved")):
        found = ours.logits(tokens[None])[0].double().numpy()
        assert np.abs(found - truth).max() <= 1e-5 * np.abs(truth).max()
    wrong = slow_logits(weights, tokens.tolist(), layers=4, heads=5, eps=1e-3, band=7)
    assert np.abs(wrong - truth).max() > 1e-3 * np.abs(truth).max()
