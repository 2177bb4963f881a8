"""Adapters in PEFT's files beside PEFT itself: the same logits, whichever side saved them."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import daybreak
from daybreak.architecture import Architecture
from daybreak.compare import reference
from daybreak.families import by_name
from daybreak.families.trials import trials
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import of, trainable
from daybreak.model.lora import Lora

BOUND = 1e-5
SHAPES = {
    "gpt": "plain",
    "gpt2": "plain",
    "gpt_neo": "every second layer local",
    "gpt_j": "half rotary",
    "gpt_neox": "parallel",
    "opt": "350m: norms after, narrow embedding",
    "bloom": "five heads",
    "llama": "shared heads",
}
LINEARS = {
    "gpt": ["c_attn", "c_proj", "c_fc"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neo": ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
    "gpt_j": ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"],
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
FUSED = ("gpt", "gpt2", "gpt_neox", "bloom")


class Both:
    """One model on both sides."""

    def __init__(self, family: str, label: str, folder: Path) -> None:
        self.folder = folder
        self.architecture: Architecture = trials(family)[label]
        self.theirs: Any = reference.build(by_name(family), self.architecture, 5)
        reference.save(self.theirs, folder / "model")
        self.text = torch.randint(1, 97, (11,), generator=torch.Generator().manual_seed(3))

    def ours(self) -> LanguageModel:
        return daybreak.load(self.folder / "model")

    def adapted(self, **options: Any) -> Any:
        """Theirs with a fresh adapter, every parameter drawn."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(copy.deepcopy(self.theirs), peft.LoraConfig(**options))
        redraw(dict(model.named_parameters()), trained_only=True)
        return model.eval()

    def opened(self, name: str) -> Any:
        """Theirs with the adapter in the folder of that name."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Found missing")  # but a warning there
            return peft.PeftModel.from_pretrained(copy.deepcopy(self.theirs), str(self.folder / name)).eval()


def redraw(parameters: dict[str, nn.Parameter], trained_only: bool = False) -> None:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in parameters.values():
            if parameter.requires_grad or not trained_only:
                parameter.normal_(0.0, 0.2, generator=generator)


def logits(model: Any, text: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(text[None])[0] if hasattr(model, "decoder") else reference.logits(model, text)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.fixture(params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Both:
    return Both(request.param, SHAPES[request.param], tmp_path)


def test_what_peft_saved(both: Both, request: pytest.FixtureRequest) -> None:
    family = request.node.callspec.params["both"]
    theirs = both.adapted(r=3, lora_alpha=7, target_modules=LINEARS[family])
    theirs.save_pretrained(str(both.folder / "adapter"))
    ours = both.ours()
    plain = logits(ours, both.text)
    ours.load_adapter(both.folder / "adapter", "theirs")
    truth = logits(theirs, both.text)
    assert difference(truth, plain) > 0.1
    assert difference(truth, logits(ours, both.text)) < BOUND
    # And what we make of it is the same file: one A for three maps stays one.
    ours.save_adapter(both.folder / "again", "theirs")
    first, second = (peft.load_peft_weights(str(both.folder / name)) for name in ("adapter", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ("attention", "mlp", "head", "tokens"), "alpha": 7.0},
        {"targets": ("query", "value", "down"), "rslora": True, "alpha": 2.0},
        {"targets": ("attention", "up"), "shared": True, "dropout": 0.3},
        {"targets": ("key", "blocks.1.mlp.down", "blocks.1.attention.query")},
    ],
    ids=["everything", "a few, rslora", "shared", "single maps"],
)
def test_what_we_saved(both: Both, options: dict[str, Any]) -> None:
    ours = both.ours()
    plain = logits(ours, both.text)
    ours.add_adapter("mine", rank=3, **options)
    redraw(trainable(ours.decoder))
    truth = logits(ours, both.text)
    assert difference(truth, plain) > 0.05
    ours.save_adapter(both.folder / "adapter", "mine")
    theirs = both.opened("adapter")
    assert difference(truth, logits(theirs, both.text)) < BOUND
    again = both.ours()
    again.load_adapter(both.folder / "adapter", "copy")
    assert difference(truth, logits(again, both.text)) < BOUND


@pytest.mark.parametrize("family", FUSED)
def test_rank_of_fused_maps(family: str, tmp_path: Path) -> None:
    """With an A each, queries, keys and values become one map of three times the rank; with one A, of it."""
    both = Both(family, SHAPES[family], tmp_path)
    for shared, rank in ((False, 12), (True, 4)):
        ours = both.ours()
        ours.add_adapter("mine", rank=4, alpha=8, targets="attention", shared=shared)
        ours.save_adapter(tmp_path / str(rank), "mine")
        saved = peft.load_peft_weights(str(tmp_path / str(rank)))
        ranks = {
            tensor.shape[0]
            for name, tensor in saved.items()
            if "lora_A" in name and "attn.c_proj" not in name
        }
        assert max(ranks) == rank


@pytest.mark.parametrize(
    ("family", "label"), [("gpt2", "relu, untied"), ("gpt_neox", "parallel"), ("llama", "all heads")]
)
def test_a_head_that_is_whole(family: str, label: str, tmp_path: Path) -> None:
    both = Both(family, label, tmp_path)
    ours = both.ours()
    ours.add_adapter("mine", targets="mlp", whole=("head",))
    redraw(trainable(ours.decoder))
    truth = logits(ours, both.text)
    ours.save_adapter(tmp_path / "adapter", "mine")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["modules_to_save"] == [
        "lm_head"
    ]
    theirs = both.opened("adapter")
    assert difference(truth, logits(theirs, both.text)) < BOUND
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = both.ours()
    again.load_adapter(tmp_path / "theirs", "back")
    assert torch.equal(truth, logits(again, both.text))


def test_ranks_that_differ_and_tables(tmp_path: Path) -> None:
    """PEFT's rank_pattern, and the copy of the table that it saves beside an adapter of it."""
    both = Both("gpt_neox", "parallel", tmp_path)
    theirs = both.adapted(
        r=2,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["query_key_value", "dense", "dense_h_to_4h", "embed_in", "lm_head"],
        rank_pattern={"query_key_value": 5, "layers.1.attention.dense": 3},
        alpha_pattern={"query_key_value": 4},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(str(tmp_path / "adapter"))
    ours = both.ours()
    ours.load_adapter(tmp_path / "adapter", "theirs")
    truth = logits(theirs, both.text)
    assert difference(truth, logits(ours, both.text)) < BOUND
    parts = of(ours.decoder, "theirs")
    ranks = {part.rank for part in parts.values() if isinstance(part, Lora)}
    assert ranks == {2, 3, 5}
    ours.save_adapter(tmp_path / "again", "theirs")
    assert difference(truth, logits(both.opened("again"), both.text)) < BOUND
