"""Layers whose weights have few bits, in the place of the decoder's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from daybreak.engine.kernels.build import library
from daybreak.engine.kernels.linear import multiply
from daybreak.engine.packed import AT_ONCE, ROWS, Packed, empty, packed, unpack, unpack_rows
from daybreak.engine.quantised import Scheme
from daybreak.model.decoder import Decoder, Tied
from daybreak.model.few_bits import FewBits

TOKENS = "tokens.weight"
"""The token embedding's parameter, and a tied head's."""


class QuantisedMatrix(FewBits):
    """A matrix [outputs, width] of few bits."""

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, width: int, outputs: int, scheme: Scheme) -> None:
        super().__init__()
        self.width, self.outputs, self.scheme = width, outputs, scheme
        for name, tensor in empty(outputs, width, scheme)._asdict().items():
            self.register_buffer(name, tensor)

    @property
    def packed(self) -> Packed:
        return Packed(self.numbers, self.scales, self.zeros)

    def take(self, weight: Tensor, name: str) -> None:
        """Become the quantised `weight` [outputs, width], which has that name."""
        self.numbers, self.scales, self.zeros = packed(weight, self.scheme, name)

    def whole(self) -> Tensor:
        """The weights, [outputs, width] float32."""
        return unpack(self.packed, self.outputs, self.width, self.scheme).whole()

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """The same, some rows at a time, with their places: so little is unpacked at once."""
        step = ROWS * max(1, AT_ONCE // (ROWS * self.width))
        for first in range(0, self.outputs, step):
            rows = slice(first, min(first + step, self.outputs))
            blocks = slice(first // ROWS, -(-rows.stop // ROWS))
            zeros = None if self.zeros is None else self.zeros[blocks]
            part = Packed(self.numbers[blocks], self.scales[blocks], zeros)
            yield rows, unpack(part, rows.stop - first, self.width, self.scheme).whole()

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows by their numbers alone, [..] int64 -> [.., width] float32."""
        found = unpack_rows(self.packed, numbers.flatten(), self.width, self.scheme).whole()
        return found.view(*numbers.shape, self.width)


class QuantisedLinear(QuantisedMatrix):
    """A linear layer with weights of few bits, which stay as they are.

    With the compiled kernels activations are rounded to 8 bits, too, with a scale for each token and group of
    inputs, and everything else is exact. Without them the weights are unpacked for each call, which is right
    and slow. So they are in training mode, in which the layer is not unless somebody says so, and wherever
    its inputs want a gradient (QLoRA, Dettmers et al., arXiv 2305.14314): adapters learn what the rounded
    weights compute, and nothing else is rounded. With `exact` it is so in every mode.
    """

    bias: Tensor | None
    exact: bool = False
    """Activations are never rounded."""

    def __init__(self, width: int, outputs: int, bias: bool, scheme: Scheme) -> None:
        super().__init__(width, outputs, scheme)
        self.register_buffer("bias", torch.empty(outputs) if bias else None)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """[.., width] -> [.., outputs], in the inputs' dtype."""
        flat = inputs.reshape(-1, self.width).float()
        if self.training or self.exact or (flat.requires_grad and torch.is_grad_enabled()):
            found: Tensor = _Unpacked.apply(flat, self)  # type: ignore[no-untyped-call]
        elif library().functions is not None and inputs.device.type == "cpu":
            found = multiply(flat, self.packed, self.bias, self.outputs, self.scheme)
        else:
            found = nn.functional.linear(flat, self.whole(), self.bias)
        return found.view(*inputs.shape[:-1], self.outputs).to(inputs.dtype)


class _Unpacked(torch.autograd.Function):
    """A product with unpacked weights, which are unpacked piece by piece, and anew for the gradient: they
    take next to no memory.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantisedLinear) -> Tensor:
        """[rows, width] float32 -> [rows, outputs]."""
        ctx.layer = layer
        found = inputs.new_empty(len(inputs), layer.outputs)
        with torch.autocast(inputs.device.type, enabled=False):
            for rows, weights in layer.pieces():
                found[:, rows] = inputs @ weights.t()
        return found if layer.bias is None else found.add_(layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Of the inputs; weights and biases have none."""
        found = gradient.new_zeros(len(gradient), ctx.layer.width)
        for rows, weights in ctx.layer.pieces():
            found += gradient[:, rows] @ weights
        return found, None


class QuantisedTied(QuantisedLinear):
    """The head that shares its matrix with the token embedding. Here it is quantised; where tokens are looked
    up it is whole, unless the scheme says otherwise."""

    def forward(self, inputs: Tensor, embedding: Tensor | None = None) -> Tensor:
        del embedding
        return super().forward(inputs)


class QuantisedEmbedding(QuantisedMatrix):
    """The token embedding; only the rows that are asked for are unpacked."""

    weight: Tensor

    def __init__(self, width: int, outputs: int, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__(width, outputs, scheme)
        self.register_buffer("weight", _no_rows(width, dtype), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..] token ids -> [.., width], in the dtype of the other weights."""
        return self.rows(tokens).to(self.weight.dtype)


class SharedEmbedding(FewBits):
    """The same where the head has the matrix."""

    weight: Tensor

    def __init__(self, head: QuantisedTied, dtype: torch.dtype) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, so that it does not become a part of this one, too
        self.width, self.outputs = head.width, head.outputs
        self.register_buffer("weight", _no_rows(head.width, dtype), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..] token ids -> [.., width], in the dtype of the other weights."""
        return self._head[0].rows(tokens).to(self.weight.dtype)

    def whole(self) -> Tensor:
        """The weights, [outputs, width] float32."""
        return self._head[0].whole()


def _no_rows(width: int, dtype: torch.dtype) -> Tensor:
    """In the place of an embedding's matrix: who asks it for the model's dtype and device gets an answer."""
    return torch.empty(0, width, dtype=dtype, device="cpu")


class Quantiser:
    """Puts quantised layers into an empty decoder, for all matrices of the blocks and the head and perhaps
    the token embedding, and fills them; everything else stays as it is, of `dtype`."""

    def __init__(self, decoder: Decoder, scheme: Scheme, dtype: torch.dtype = torch.float32) -> None:
        self.layers: dict[str, QuantisedMatrix] = {}
        """By the parameter that each is made of."""
        self._scheme = scheme
        for name, module in list(decoder.named_modules()):
            layer = self._instead(module, decoder, dtype)
            if layer is not None:
                _put(decoder, name, layer)
                self.layers[TOKENS if isinstance(module, Tied) else f"{name}.weight"] = layer
        tied = self.layers.get(TOKENS)
        if scheme.embeddings and isinstance(tied, QuantisedTied):
            _put(decoder, "tokens", SharedEmbedding(tied, dtype))

    def __call__(self, name: str, weight: Tensor) -> bool:
        """Take the parameter of that name if it belongs to such a layer: is it no parameter any more? Raises
        `DaybreakError` for weights that are not finite."""
        layer = self.layers.get(name)
        if layer is not None:
            layer.take(weight, name)
            return self._scheme.embeddings or not isinstance(layer, QuantisedTied)
        layer = self.layers.get(name.removesuffix(".bias") + ".weight")
        if isinstance(layer, QuantisedLinear):
            layer.bias = weight.float()  # of whatever dtype the rest is: the kernels know no other
        return isinstance(layer, QuantisedLinear)

    def _instead(self, module: nn.Module, decoder: Decoder, dtype: torch.dtype) -> QuantisedMatrix | None:
        """The layer, without memory, that is put into a module's place."""
        shape = decoder.architecture
        rows, width = shape.vocabulary, shape.embedding_width or shape.width
        with torch.device("meta"):
            if isinstance(module, nn.Linear):
                inputs, outputs = module.in_features, module.out_features
                return QuantisedLinear(inputs, outputs, module.bias is not None, self._scheme)
            if isinstance(module, Tied):
                return QuantisedTied(width, rows, False, self._scheme)
            if module is decoder.tokens and self._scheme.embeddings and not shape.tied:
                return QuantisedEmbedding(width, rows, self._scheme, dtype)
        return None


def is_quantised(decoder: Decoder) -> bool:
    return bits_of(decoder) is not None


def bits_of(decoder: Decoder) -> int | None:
    """How many bits its matrices have; None: they are whole."""
    return next((layer.scheme.bits for layer in _linears(decoder)), None)


@contextmanager
def unrounded(decoder: Decoder, exact: bool = True) -> Iterator[None]:
    """Within, activations are not rounded, whatever the mode: what is trained, its reference and its figures
    are of one model then. Not `exact`: they are, where kernels round them, as when texts are written.
    """
    before = [(layer, layer.exact) for layer in _linears(decoder)]
    for layer, _ in before:
        layer.exact = exact
    try:
        yield
    finally:
        for layer, own in before:
            layer.exact = own


def _linears(decoder: Decoder) -> Iterator[QuantisedLinear]:
    return (module for module in decoder.modules() if isinstance(module, QuantisedLinear))


def _put(decoder: Decoder, name: str, layer: nn.Module) -> None:
    owner, _, own = name.rpartition(".")
    setattr(decoder.get_submodule(owner), own, layer)
