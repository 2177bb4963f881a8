"""The structures of the compiled kernels (matrix.h, attention.h, step.cpp), field by field."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

FLOATS, BFLOATS = 1, 2
"""Kinds of matrices that are not quantised; the kind of the others is their bits."""
ORDERS = ("pre", "post", "parallel")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
STORED = ("float32", "bfloat16", "int8")
"""Of keys and values."""
MATRICES = ("query", "key", "value", "out", "gate", "up", "down")
"""Of a layer."""


class Matrix(Structure):
    _fields_ = [
        ("kind", c_int64),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("group", c_int64),
        ("per_row", c_int64),
    ]


class Norm(Structure):
    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class Block(Structure):
    _fields_ = [
        ("attention_norm", Norm),
        ("mlp_norm", Norm),
        *((name, Matrix) for name in MATRICES),
        ("window", c_int64),
        ("group", c_int64),
        ("offset", c_int64),
        ("scale", c_float),
    ]


class Heads(Structure):
    _fields_ = [("heads", c_int64), ("key_heads", c_int64), ("width", c_int64), ("stored", c_int64)]


class Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("layers", "width", "inner")),
        ("heads", Heads),
        *((name, c_int64) for name in ("order", "shared_norm", "normed_residual", "gated", "activation")),
        *((name, c_int64) for name in ("root_mean_square", "turning", "neighbours")),
        *((name, c_int64) for name in ("has_final_norm", "streamed")),
        ("residual_scale", c_float),
        ("epsilon", c_float),
        ("slopes", c_void_p),
        ("final_norm", Norm),
        ("blocks", POINTER(Block)),
    ]


class Tokens(Structure):
    _fields_ = [
        ("count", c_int64),
        ("texts", c_int64),
        ("hidden", c_void_p),
        ("cosines", c_void_p * 2),
        ("sines", c_void_p * 2),
        *((name, c_void_p) for name in ("owners", "places", "ends", "tables")),
        ("threads", c_int64),
    ]
