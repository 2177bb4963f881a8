"""Documented commands that the tests do not run, each with its reason; that they exist is tested."""

from __future__ import annotations

NOT_RUN = {
    "make setup": "installs a gigabyte; the continuous check does it in a clean environment",
    "make demo": "trains for minutes; the quickstart has tests of its own at a smaller size",
    "make test": "would run itself",
    "make check": "would run itself",
    "make bench": "measures for minutes, and needs a quiet machine",
    "daybreak quickstart": "trains for minutes; it has tests of its own at a smaller size",
    "daybreak verify": "takes minutes, or a download; its logic is what tests/parity runs",
    "daybreak generate": "needs a published checkpoint, or the quickstart's; tested with a small one",
    "daybreak infill": "needs a model with blanks, published or trained; tested with a small one",
    "daybreak convert": "needs a checkpoint in another format; tested with small ones",
    "daybreak quantize": "needs a checkpoint; tested with small ones",
    "daybreak chat": "needs a published checkpoint; tested with a small one",
    "daybreak data build": "needs texts and a tokenizer; tested with small ones",
    "daybreak data stats": "needs a data set; tested with a small one",
    "daybreak data replay": "needs a run; tested with a small one",
    "daybreak ulmfit": "needs texts, and trains for minutes; tested with small ones",
    "daybreak finetune": "needs a model and data, and trains for minutes; tested with small ones",
    "daybreak classify": "needs a fine-tuned model; tested with small ones",
    "daybreak align": "needs models and data, and trains for minutes; tested with small ones",
    "daybreak pretrain": "needs a data set, and trains for minutes; tested with small ones",
    "daybreak runs runs": "needs runs; tested with small ones",
    "daybreak runs show": "needs runs; tested with small ones",
    "daybreak describe pythia-12b --fits": "says what this machine has, as the doctor does; tested",
    "daybreak doctor": "says what this machine has, which differs from any other's; tested",
    "make bench-train": "measures for minutes, and needs a quiet machine",
    "daybreak tokenizer": "needs texts; tested with small ones",
    "python benchmarks": "measures for minutes, and needs a quiet machine",
}
"""By the beginning of the command; `.venv/bin/daybreak` counts as `daybreak`."""

NETWORK = ("from_pretrained", "EleutherAI/", "openai-community/", "facebook/", "bigscience/", "THUDM/")
DATA = ('TokenSet.open("data/',)
ONLY_COMPILED = (*NETWORK, *DATA)
"""Python examples that have one of these would download, or need a data set; what they show has tests."""
