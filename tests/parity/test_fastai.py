"""AWD-LSTM beside fastai's, with the same weights and no dropout: logits, one step's gradients, a classifier.

fastai needs packages that the environment of the tests has no place for, so it runs in a Python of its own,
which the variable DAYBREAK_FASTAI names (docs/ulmfit.md says how to make one).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from daybreak import families
from daybreak.checkpoint.recurrent import names, to_fastai
from daybreak.families.recurrent import Lstm
from daybreak.model.awd_classifier import AwdClassifier
from daybreak.model.awd_lstm import AwdLstm, activation_penalty, slowness_penalty
from tests.reference import lstm as loops

VARIABLE = "DAYBREAK_FASTAI"
BOUND = 1e-5
PAGE = families.recurrent("ulmfit")
assert PAGE is not None


def python() -> str:
    if (named := os.environ.get(VARIABLE)) is not None:
        return named
    if importlib.util.find_spec("fastai") is None:
        pytest.skip(f"fastai is in no environment here: {VARIABLE} is to name the Python of one that has it")
    return sys.executable


def fastai_head(made: AwdClassifier) -> dict[str, Tensor]:
    own = made.head.state_dict()
    parts = {"first_norm": "0.0", "first": "0.2", "second_norm": "1.0", "second": "1.2"}
    return {
        f"layers.{theirs}.{field.removeprefix(ours + '.')}": one
        for ours, theirs in parts.items()
        for field, one in own.items()
        if field.startswith(f"{ours}.") and "num_batches" not in field
    }


@pytest.mark.parametrize(("layers", "length"), [(3, 11), (1, 4), (2, 2)])
def test_logits_gradients_and_classifier_are_fastais(tmp_path: Path, layers: int, length: int) -> None:
    theirs_python = python()
    shape = Lstm(vocabulary=41, width=7, hidden=13, layers=layers)
    made = AwdLstm(shape)
    classifier = AwdClassifier(made, 4, inner=6, window=5)
    loops.redrawn(classifier, seed=5)
    generator = torch.Generator().manual_seed(layers)
    tokens, targets = torch.randint(2, 41, (2, 3, length), generator=generator)
    lengths = torch.tensor([17, 12, 7])
    texts = torch.randint(2, 41, (3, 17), generator=generator)
    given = {
        "sizes": torch.tensor([41, 7, 13, layers]),
        "tokens": tokens,
        "targets": targets,
        "long": in_front(texts, lengths, window=5),
        **{f"lm/{name}": one for name, one in to_fastai(PAGE, made).items()},
        **{f"head/{name}": one for name, one in fastai_head(classifier).items()},
    }
    numpy.savez(tmp_path / "given.npz", **{name: one.detach().numpy() for name, one in given.items()})
    side = Path(__file__).with_name("fastai_side.py")
    run = [theirs_python, str(side), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: torch.from_numpy(one) for name, one in numpy.load(tmp_path / "found.npz").items()}

    read = made.train()(tokens)
    loss = functional.cross_entropy(made.unembed(read.dropped).flatten(0, 1), targets.flatten())
    loss = loss + activation_penalty(read, 2.0) + slowness_penalty(read, 1.0)
    loss.backward()
    own = dict(made.named_parameters())
    worst = {
        "logits": distance(made.eval().logits(tokens), found["logits"]),
        "loss": distance(loss, found["loss"]),
        "scores": distance(classifier.eval()(texts, lengths), found["scores"]),
    }
    for theirs, ours in names(PAGE, layers, own).items():
        gradient = own[ours].grad
        assert gradient is not None
        worst[ours] = distance(gradient, found[f"gradient/{theirs}"])
    print(f"layers {layers}: worst {max(worst.values()):.1e}", worst)
    assert max(worst.values()) <= BOUND, worst


def in_front(texts: Tensor, lengths: Tensor, window: int) -> Tensor:
    """As fastai pads a batch: whole windows in front, the rest of the last window behind."""
    wide = -(-texts.shape[1] // window) * window
    padded = torch.ones(len(texts), wide, dtype=torch.int64)
    for row, length in enumerate(lengths.tolist()):
        start = (wide - length) // window * window
        padded[row, start : start + length] = texts[row, :length]
    return padded[:, : texts.shape[1]] if int(lengths.max()) == texts.shape[1] else padded


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one.detach() - other).abs().max() / other.abs().max().clamp(min=1e-12))
