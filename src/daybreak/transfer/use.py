"""What trained models are good for: scores of texts, and classes for texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from daybreak.errors import DaybreakError
from daybreak.transfer.classify import Classifier
from daybreak.transfer.language import score
from daybreak.transfer.run import opened
from daybreak.transfer.texts import read_texts


def evaluate(
    sources: Sequence[str], files: Sequence[str], column: str = "text", label: str = "label"
) -> dict[str, float]:
    """Of a language model `loss`, `perplexity`, `bits_per_byte`, `unknown`; of classifiers `loss`, `accuracy`
    and `error`. Raises `DaybreakError` for several language models."""
    models = [opened(source) for source in sources]
    if any(model.head for model in models):
        return Classifier(models).evaluate(read_texts(files, column, label))
    if len(models) > 1:
        raise DaybreakError("several language models have no score in common; give one, or classifiers")
    return score(models[0], read_texts(files, column)).figures()


def predict(sources: Sequence[str], files: Sequence[str], column: str = "text") -> Iterator[dict[str, Any]]:
    """For each text `label`, `probabilities` by class, and `where` it stands."""
    classifier = Classifier([opened(source) for source in sources])
    texts = read_texts(files, column)
    for text, chances in zip(texts, classifier.probabilities(texts).tolist(), strict=True):
        told = dict(zip(classifier.labels, chances, strict=True))
        yield {"label": max(told, key=told.__getitem__), "probabilities": told, "where": text.where}
