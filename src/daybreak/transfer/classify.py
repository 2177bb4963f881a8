"""A classifier on an LSTM language model: tuned layer by layer, used alone or as a pair of directions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from daybreak.errors import DaybreakError
from daybreak.model.awd_classifier import AwdClassifier, initialise_head
from daybreak.model.awd_lstm import AwdLstm, initialise_lstm
from daybreak.recurrent_model import RecurrentModel
from daybreak.transfer.language import tokens_of
from daybreak.transfer.loop import Task, fingerprint, seed_of
from daybreak.transfer.schedule import discriminative, slanted_triangle, stage_of, stages, thawed
from daybreak.transfer.settings import ClassifySettings
from daybreak.transfer.texts import Text, classes, numbers

LABELS, HEAD = "labels", "classifier"
"""Keys of config.json: the classes in their order, and the shape of the head."""
BESIDE = 64
"""Texts that are classified beside each other."""


class ClassifyTask(Task):
    """Predict the class of each text."""

    figure, higher = "accuracy", True

    def __init__(
        self,
        start: RecurrentModel,
        texts: Sequence[Text],
        held_out: Sequence[Text],
        settings: ClassifySettings,
    ) -> None:
        self._settings, self._start = settings, start
        self.labels = classes(texts)
        self._targets = numbers(texts, self.labels)
        self._texts = tokens_of(start, texts)
        self._held_out, self._held_out_targets = tokens_of(start, held_out), numbers(held_out, self.labels)
        self._fingerprint = fingerprint(self._texts, self._targets)
        if len(texts) < 2:
            raise DaybreakError("there is one text; a classifier needs more to learn from")
        dropouts = start.family.classifier_dropouts.times(settings.dropout)
        encoder = AwdLstm(start.architecture, dropouts)
        if settings.pretrained:
            encoder.load_state_dict(start.decoder.state_dict())
        else:
            initialise_lstm(encoder, settings.seed)
        self.model: AwdClassifier = _classifier(encoder, len(self.labels), self._shape())
        initialise_head(self.model.head, settings.seed)
        self.epoch_steps = max(1, len(texts) // settings.batch) if len(texts) >= settings.batch else 1
        self._stages = stages(settings.epochs, len(self.model.groups()), settings.gradual)
        self._epoch, self._batches = -1, list[list[int]]()
        self.carried: Mapping[str, Tensor] = {}

    @property
    def settings(self) -> ClassifySettings:
        return self._settings

    def _shape(self) -> dict[str, Any]:
        given = self.settings
        return {
            "inner": given.inner,
            "dropout": given.head_dropout,
            "window": given.window,
            "longest": given.longest,
        }

    def groups(self) -> list[list[nn.Parameter]]:
        return self.model.groups()

    def rates(self, step: int) -> list[float | None]:
        settings, groups = self.settings, len(self.model.groups())
        epoch = step // self.epoch_steps
        stage = stage_of(epoch, self._stages)
        within, steps = step - stage.start * self.epoch_steps, len(stage) * self.epoch_steps
        share = slanted_triangle(within, steps, settings.cut, settings.ratio)
        awake = thawed(epoch, groups) if settings.gradual else range(groups)
        every = discriminative(settings.lr, groups, settings.factor)
        return [share * rate if group in awake else None for group, rate in enumerate(every)]

    def loss(self, step: int) -> tuple[Tensor, int]:
        epoch, number = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        chosen = self._batches[number]
        tokens, lengths = padded([self._texts[place] for place in chosen])
        targets = torch.tensor([self._targets[place] for place in chosen])
        return functional.cross_entropy(self.model(tokens, lengths), targets), int(lengths.sum())

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """Batches of texts of similar length: drawn, sorted in pools, and the batches drawn again. The few
        that make no whole batch wait for another epoch; norms over a batch of one would have no meaning."""
        batch, count = self.settings.batch, len(self._texts)
        generator = torch.Generator().manual_seed(seed_of("order", self.settings.seed, epoch))
        order = torch.randperm(count, generator=generator).tolist()[: max(batch, count // batch * batch)]
        pool = 20 * batch
        ranked = [
            place
            for first in range(0, len(order), pool)
            for place in sorted(order[first : first + pool], key=lambda place: len(self._texts[place]))
        ]
        found = [ranked[first : first + batch] for first in range(0, len(ranked), batch)]
        return [found[k] for k in torch.randperm(len(found), generator=generator).tolist()]

    def evaluate(self) -> dict[str, float]:
        if not self._held_out:
            return {}
        chances = _chances(self.model, self._held_out)
        return figures(chances, self._held_out_targets)

    def save(self, folder: Path) -> None:
        start = self._start
        config = {**start.config, LABELS: self.labels, HEAD: self._shape()}
        head = {name: one.detach() for name, one in self.model.head.state_dict().items()}
        encoder = self.model.encoder
        RecurrentModel(start.family, encoder, start.tokenizer, config, start.generation, head).save(folder)

    def facts(self) -> dict[str, Any]:
        return {
            "family": self._start.family.name,
            "classes": len(self.labels),
            "parameters": sum(one.numel() for group in self.groups() for one in group),
            "texts": len(self._texts),
        }

    def fingerprint(self) -> str:
        return self._fingerprint


class Classifier:
    """One or several models that were trained on the same classes; their probabilities are averaged."""

    def __init__(self, models: Sequence[RecurrentModel]) -> None:
        """Raises `DaybreakError` for a model that is no classifier, and for different classes."""
        for model in models:
            if not model.head or LABELS not in model.config:
                raise DaybreakError(f"{model!r} is no classifier; give what `classify` wrote")
        self.labels: list[str] = list(models[0].config[LABELS])
        for model in models[1:]:
            if list(model.config[LABELS]) != self.labels:
                theirs = json.dumps(model.config[LABELS], ensure_ascii=False)
                raise DaybreakError(
                    f"the models have different classes, {json.dumps(self.labels, ensure_ascii=False)} and "
                    f"{theirs}; an ensemble needs the same"
                )
        self._models = [(model, _restored(model)) for model in models]

    def probabilities(self, texts: Sequence[Text]) -> Tensor:
        """[texts, classes], the mean over the models (section 3.3: forward and backward)."""
        found = [_chances(classifier, tokens_of(model, texts)) for model, classifier in self._models]
        return torch.stack(found).mean(0)

    def evaluate(self, texts: Sequence[Text]) -> dict[str, float]:
        """`loss` (nats), `accuracy` and `error` of texts with classes."""
        return figures(self.probabilities(texts), numbers(texts, self.labels))


def _restored(model: RecurrentModel) -> AwdClassifier:
    made = _classifier(model.decoder, len(model.config[LABELS]), model.config[HEAD])
    made.head.load_state_dict(model.head)
    return made.eval()


def _classifier(encoder: AwdLstm, count: int, shape: Mapping[str, Any]) -> AwdClassifier:
    return AwdClassifier(encoder, count, **shape)


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """[texts, longest] with zeros behind, and the lengths."""
    longest = max(map(len, texts))
    rows = [[*text, *[0] * (longest - len(text))] for text in texts]
    return torch.tensor(rows), torch.tensor([len(text) for text in texts])


@torch.no_grad()
def _chances(model: AwdClassifier, texts: Sequence[Sequence[int]]) -> Tensor:
    """[texts, classes] probabilities."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found = []
    for first in range(0, len(order), BESIDE):
        tokens, lengths = padded([texts[number] for number in order[first : first + BESIDE]])
        found.append(model(tokens, lengths).softmax(-1))
    back = torch.tensor(order).argsort()
    return torch.cat(found)[back]


def figures(chances: Tensor, targets: Sequence[int]) -> dict[str, float]:
    """`loss` in nats, `accuracy` and `error` of probabilities [texts, classes]."""
    right = torch.tensor(list(targets))
    accuracy = float((chances.argmax(-1) == right).double().mean())
    own = chances[torch.arange(len(right)), right]
    loss = float(-own.clamp(min=1e-30).double().log().mean())
    return {"loss": loss, "accuracy": accuracy, "error": 1 - accuracy} if math.isfinite(loss) else {}
