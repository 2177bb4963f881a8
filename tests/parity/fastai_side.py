"""What fastai computes, in a Python of its own: python fastai_side.py given.npz found.npz.

`given` holds a language model's state by fastai's names, a classifier's head, tokens, targets and sizes.
`found` gets logits, the loss of one training step with both penalties, every gradient, and a classifier's
scores. All dropouts are 0.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy
import torch
from fastai.callback.rnn import RNNRegularizer
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.text.models.core import LinearDecoder, PoolingLinearClassifier, SentenceEncoder, SequentialRNN

NONE = {"hidden_p": 0.0, "input_p": 0.0, "embed_p": 0.0, "weight_p": 0.0}


def main(given_file: str, found_file: str) -> None:
    given = {name: torch.from_numpy(array) for name, array in numpy.load(given_file).items()}
    vocabulary, width, hidden, layers = given["sizes"].tolist()
    state = {name.removeprefix("lm/"): one for name, one in given.items() if name.startswith("lm/")}

    def language_model() -> SequentialRNN:  # a fresh one each time: reset fails after another mode
        encoder = AWD_LSTM(vocabulary, width, hidden, layers, **NONE)
        decoder = LinearDecoder(vocabulary, width, output_p=0.0, tie_encoder=encoder.encoder)
        made = SequentialRNN(encoder, decoder)
        made.load_state_dict(state, strict=True)
        made.reset()
        return made

    found = {"logits": language_model().eval()(given["tokens"])[0].detach()}
    model = language_model().train()
    logits, raw, dropped = model(given["tokens"])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given["targets"].flatten())
    found["loss"] = with_penalties(loss, raw, dropped)
    found["loss"].backward()
    found["loss"] = found["loss"].detach()
    found |= {f"gradient/{name}": one.grad for name, one in model.named_parameters() if one.grad is not None}
    found["scores"] = classified(language_model()[0], given, width)
    numpy.savez(found_file, **{name: one.numpy() for name, one in found.items()})


def with_penalties(loss: torch.Tensor, raw: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    penalties = RNNRegularizer(alpha=2.0, beta=1.0)
    outputs = SimpleNamespace(raw_out=raw, out=dropped)
    penalties.learn = SimpleNamespace(loss_grad=loss, training=True, rnn=outputs)
    penalties.after_loss()
    return penalties.learn.loss_grad


def classified(encoder: torch.nn.Module, given: dict[str, torch.Tensor], width: int) -> torch.Tensor:
    """A classifier in windows of 5 tokens; fastai pads in front by whole windows, and behind otherwise."""
    head = {name.removeprefix("head/"): one for name, one in given.items() if name.startswith("head/")}
    inner, classes = head["layers.0.2.weight"].shape[0], head["layers.1.2.weight"].shape[0]
    pooling = PoolingLinearClassifier([3 * width, inner, classes], [0.4, 0.1], bptt=5)  # not used below
    lacking = pooling.load_state_dict(head, strict=False)
    assert not lacking.unexpected_keys and all("num_batches" in key for key in lacking.missing_keys)
    whole = SequentialRNN(SentenceEncoder(5, encoder, 1, 1000), pooling).eval()
    whole.reset()
    with torch.no_grad():
        return whole(given["long"])[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
