"""Layers whose weights have few bits, in the place of the decoder's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daybreak.engine.kernels.build import library
from daybreak.engine.kernels.linear import multiply
from daybreak.engine.packed import Packed, empty, packed, unpack
from daybreak.engine.quantised import Scheme
from daybreak.model.decoder import Decoder, Tied


class QuantisedLinear(nn.Module):
    """A linear layer with weights of few bits, for inference only.

    With the compiled kernels activations are rounded to 8 bits, too, with a scale for each token and group of
    inputs, and everything else is exact. Without them the weights are unpacked for each call, which is right
    and slow.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, width: int, outputs: int, bias: bool, scheme: Scheme) -> None:
        super().__init__()
        self.width, self.outputs, self.scheme = width, outputs, scheme
        for name, tensor in empty(outputs, width, scheme)._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", torch.empty(outputs) if bias else None)

    def take(self, weight: Tensor, name: str) -> None:
        """Become the quantised `weight` [outputs, inputs], which has that name."""
        self.numbers, self.scales, self.zeros = packed(weight, self.scheme, name)

    def forward(self, inputs: Tensor) -> Tensor:
        """[.., inputs] -> [.., outputs], in the inputs' dtype."""
        flat = inputs.reshape(-1, self.width).float()
        weights = Packed(self.numbers, self.scales, self.zeros)
        if library().functions is not None and inputs.device.type == "cpu":
            found = multiply(flat, weights, self.bias, self.outputs, self.scheme)
        else:
            weight = unpack(weights, self.outputs, self.width, self.scheme).whole()
            found = nn.functional.linear(flat, weight, self.bias)
        return found.view(*inputs.shape[:-1], self.outputs).to(inputs.dtype)


class QuantisedTied(QuantisedLinear):
    """The head that shares its matrix with the token embedding: quantised here, whole where tokens are looked
    up."""

    def forward(self, inputs: Tensor, embedding: Tensor | None = None) -> Tensor:
        del embedding
        return super().forward(inputs)


class Quantiser:
    """Puts quantised layers into an empty decoder, for all matrices of the blocks and the head, and fills
    them; embeddings and norms stay as they are."""

    def __init__(self, decoder: Decoder, scheme: Scheme) -> None:
        self.layers: dict[str, QuantisedLinear] = {}
        """By the parameter that each is made of."""
        for name, module in list(decoder.named_modules()):
            owner, _, own = name.rpartition(".")
            if isinstance(module, nn.Linear | Tied):
                layer = _empty(module, decoder, scheme)
                setattr(decoder.get_submodule(owner), own, layer)
                self.layers["tokens.weight" if isinstance(module, Tied) else f"{name}.weight"] = layer

    def __call__(self, name: str, weight: Tensor) -> bool:
        """Take the parameter of that name if it is such a matrix. Raises `DaybreakError` for weights that are
        not finite."""
        layer = self.layers.get(name)
        if layer is not None:
            layer.take(weight, name)
        return layer is not None and not isinstance(layer, QuantisedTied)


def is_quantised(decoder: Decoder) -> bool:
    return any(isinstance(module, QuantisedLinear) for module in decoder.modules())


def _empty(module: nn.Linear | Tied, decoder: Decoder, scheme: Scheme) -> QuantisedLinear:
    with torch.device("meta"):
        if isinstance(module, Tied):
            rows, width = decoder.tokens.weight.shape
            return QuantisedTied(width, rows, False, scheme)
        return QuantisedLinear(module.in_features, module.out_features, module.bias is not None, scheme)
