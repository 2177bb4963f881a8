"""From one vocabulary to another: what words have in common keeps its row, new words begin at the mean."""

from __future__ import annotations

import dataclasses

import torch

from daybreak.model.awd_lstm import AwdLstm
from daybreak.recurrent_model import RecurrentModel
from daybreak.text.words import Words


@torch.no_grad()
def moved(model: RecurrentModel, words: Words) -> RecurrentModel:
    """The same model with the vocabulary `words`: a word that it knew keeps its vector and its bias, any
    other gets the mean of all (as fastai does)."""
    before = model.decoder
    assert model.tokenizer is not None
    decoder = AwdLstm(dataclasses.replace(before.shape, vocabulary=words.vocabulary), before.dropouts)
    decoder.layers.load_state_dict(before.layers.state_dict())
    old = {word: number for number, word in enumerate(model.tokenizer.words)}
    rows = torch.tensor([old.get(word, -1) for word in words.words])
    known = rows >= 0
    decoder.tokens.weight.copy_(before.tokens.weight.mean(0))
    decoder.head_bias.copy_(before.head_bias.mean())
    decoder.tokens.weight[known] = before.tokens.weight[rows[known]]
    decoder.head_bias[known] = before.head_bias[rows[known]]
    return RecurrentModel(model.family, decoder.eval(), words, model.config, model.generation)


def shared(model: RecurrentModel, words: Words) -> int:
    """How many of `words` the model knows already."""
    assert model.tokenizer is not None
    return len({*words.words} & {*model.tokenizer.words})
