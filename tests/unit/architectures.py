"""Random architectures for property tests: any at all, and those a family's config.json can say."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from daybreak import families
from daybreak.architecture import BIASES, Alibi, Architecture, Blanks, Learned, Rotary

BASES = st.sampled_from([10000.0, 500.0, 77.5])


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that say how large a model is; every one small, and heads and widths in all proportions."""
    heads = draw(st.integers(1, 7))
    return {
        "vocabulary": draw(st.integers(1, 90)),
        "context": draw(st.integers(1, 50)),
        "layers": draw(st.integers(1, 5)),
        "heads": heads,
        "width": heads * 2 * draw(st.integers(1, 9)),
        "inner": draw(st.integers(1, 99)),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-3, 1e-12])),
    }


def head_width(shape: dict[str, Any]) -> int:
    return int(shape["width"] // shape["heads"])


@st.composite
def rotaries(draw: st.DrawFn, head_width: int, pairs: str | None = None) -> Rotary:
    width = 2 * draw(st.integers(1, head_width // 2))
    return Rotary(width, pairs or draw(st.sampled_from(["neighbours", "halves"])), draw(BASES))  # type: ignore[arg-type]


@st.composite
def patterns(draw: st.DrawFn, layers: int) -> tuple[int | None, ...]:
    """Windows in their shortest form: a pattern that repeats within the layers is cut to one period."""
    size = draw(st.integers(1, 9))
    windows = draw(st.lists(st.sampled_from([None, size]), min_size=layers, max_size=layers))
    return shortest(tuple(windows))


def shortest(windows: tuple[int | None, ...]) -> tuple[int | None, ...]:
    count = len(windows)
    period = next(n for n in range(1, count + 1) if all(windows[i] == windows[i % n] for i in range(count)))
    return windows[:period]


@st.composite
def any_architecture(draw: st.DrawFn) -> Architecture:
    """Whatever `Architecture` accepts."""
    shape = draw(shapes())
    learned = st.builds(Learned, st.integers(0, 4))
    heads = shape["heads"]
    key_heads = draw(st.none() | st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    if shape["vocabulary"] >= 5 and draw(st.booleans()):
        return draw(architecture_with_blanks(shape, key_heads))
    positions = draw(st.one_of(learned, rotaries(head_width(shape)), st.just(Alibi())))
    block = draw(st.sampled_from(["pre", "post", "parallel"]))
    tied = draw(st.booleans())
    biases = draw(st.frozensets(st.sampled_from(sorted(BIASES - {"head"} if tied else BIASES))))
    return Architecture(
        **shape,
        key_heads=key_heads,
        gated=draw(st.booleans()),
        norm=draw(st.sampled_from(["layer", "rms"])),
        positions=positions,
        block=block,
        shared_norm=block == "parallel" and draw(st.booleans()),
        residual=draw(st.sampled_from(["input", "normed"])) if block == "pre" else "input",
        residual_scale=draw(st.sampled_from([1.0, 2.5])) if block == "pre" else 1.0,
        embedding_width=draw(st.none() | st.integers(1, 40)),
        embedding_norm=draw(st.booleans()),
        final_norm=draw(st.booleans()),
        norm_affine=draw(st.booleans()),
        activation=draw(activations()),
        windows=draw(patterns(shape["layers"])),
        scaled_scores=draw(st.booleans()),
        layer_scaled_scores=draw(st.booleans()),
        biases=biases,
        tied=tied,
    )


@st.composite
def blanks(draw: st.DrawFn, vocabulary: int) -> Blanks:
    ids = draw(st.lists(st.integers(0, vocabulary - 1), min_size=5, max_size=5, unique=True))
    start, end, mask, rest, sentence = ids
    return Blanks(start, end, mask, rest, draw(st.none() | st.just(sentence)), draw(st.booleans()))


@st.composite
def architecture_with_blanks(
    draw: st.DrawFn, shape: dict[str, Any], key_heads: int | None = None
) -> Architecture:
    """A context in both directions and pieces; learned or rotary positions, in one row or two."""
    rows = draw(st.booleans()) and head_width(shape) >= 4
    rotary = draw(rotaries(head_width(shape) // 2 if rows else head_width(shape)))
    half = draw(st.booleans())
    turning = Rotary(rotary.width, rotary.pairs, rotary.base, blocks=rows, half_frequencies=half)
    return Architecture(
        **shape,
        key_heads=key_heads,
        gated=draw(st.booleans()),
        positions=draw(st.sampled_from([turning, Learned(blocks=rows)])),
        residual=draw(st.sampled_from(["input", "normed"])),
        activation=draw(activations()),
        blanks=draw(blanks(shape["vocabulary"])),
    )


def activations() -> st.SearchStrategy[Any]:
    return st.sampled_from(["gelu", "gelu_tanh", "relu", "silu"])


@st.composite
def of_family(draw: st.DrawFn, name: str) -> Architecture:
    """An architecture that the config.json of the family `name` can say."""
    family = families.by_name(name)
    return family.architecture(**draw(_LIMITS[name]))


def _with_shape(build: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a shape and then the decisions that depend on it; `build(draw, shape)` gives the changes."""

    @st.composite
    def strategy(draw: st.DrawFn) -> dict[str, Any]:
        shape = draw(shapes())
        return {**shape, **build(draw, shape)}

    return strategy()


def _gpt(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    activation = draw(st.sampled_from(["gelu_tanh", "relu", "silu"]))
    return {"inner": 4 * shape["width"], "activation": activation, "tied": draw(st.booleans())}


def _gpt2(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    switches = {name: draw(st.booleans()) for name in ("scaled_scores", "layer_scaled_scores", "tied")}
    return {"activation": draw(activations()), **switches}


def _gpt3(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    return {**_gpt2(draw, shape), "windows": draw(patterns(shape["layers"]))}


def _gpt_neo(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    windows = draw(patterns(shape["layers"]))
    return {"windows": windows, "activation": draw(activations()), "tied": draw(st.booleans())}


def _gpt_j(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    rotary = draw(rotaries(head_width(shape), "neighbours"))
    return {"positions": Rotary(rotary.width, "neighbours"), "activation": draw(activations())}


def _gpt_neox(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "positions": draw(rotaries(head_width(shape), "halves")),
        "block": draw(st.sampled_from(["pre", "parallel"])),
        "biases": draw(st.sampled_from([frozenset({"mlp"}), frozenset({"qkv", "out", "mlp"})])),
        "activation": draw(activations()),
        "tied": draw(st.booleans()),
    }


def _opt(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    before = draw(st.booleans())
    embedding = draw(st.none() | st.integers(1, 40).filter(lambda n: n != shape["width"]))
    return {
        "norm_eps": 1e-5,
        "block": "pre" if before else "post",
        "final_norm": before and draw(st.booleans()),
        "embedding_width": embedding,
        "norm_affine": draw(st.booleans()),
        "activation": draw(activations()),
        "biases": draw(st.sampled_from([frozenset(), frozenset({"qkv", "out", "mlp"})])),
        "tied": draw(st.booleans()),
    }


def _bloom(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    residual = draw(st.sampled_from(["input", "normed"]))
    return {"inner": 4 * shape["width"], "residual": residual, "tied": draw(st.booleans())}


def _glm(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    vocabulary = draw(st.integers(5, 90))
    own = draw(blanks(vocabulary))
    marks = Blanks(own.start, own.end, own.mask, own.rest, own.sentence)
    return {"vocabulary": vocabulary, "blanks": marks, "activation": draw(activations())}


def _glm_130b(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    vocabulary = draw(st.integers(5, 90))
    own = draw(blanks(vocabulary).filter(lambda b: b.sentence is not None))
    marks = Blanks(own.start, own.end, own.mask, own.rest, own.sentence, runs_on=True)
    return {"vocabulary": vocabulary, "blanks": marks, "activation": draw(activations())}


def _chatglm(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    vocabulary = draw(st.integers(5, 90))
    marks = draw(blanks(vocabulary).filter(lambda b: b.sentence is not None))
    heads = shape["heads"]
    width = 4 * heads * draw(st.integers(1, 5))
    rows = draw(st.booleans())
    rotary = Rotary(width // heads // (2 if rows else 1), blocks=rows, half_frequencies=draw(st.booleans()))
    return {
        "vocabulary": vocabulary,
        "blanks": marks,
        "width": width,
        "positions": rotary,
        "activation": draw(activations()),
        "tied": draw(st.booleans()),
    }


def _llama(draw: st.DrawFn, shape: dict[str, Any]) -> dict[str, Any]:
    heads = shape["heads"]
    key_heads = draw(st.sampled_from([n for n in range(1, heads) if heads % n == 0] or [None]))
    biases = draw(st.sampled_from([frozenset(), frozenset({"mlp"}), frozenset({"qkv", "out"})]))
    return {
        "key_heads": key_heads,
        "positions": Rotary(head_width(shape), "halves", draw(BASES)),
        "biases": biases,
        "activation": draw(activations()),
        "tied": draw(st.booleans()),
    }


_LIMITS = {
    "glm": _with_shape(_glm),
    "glm_130b": _with_shape(_glm_130b),
    "chatglm": _with_shape(_chatglm),
    "llama": _with_shape(_llama),
    "gpt": _with_shape(_gpt),
    "gpt2": _with_shape(_gpt2),
    "gpt3": _with_shape(_gpt3),
    "gpt_neo": _with_shape(_gpt_neo),
    "gpt_j": _with_shape(_gpt_j),
    "gpt_neox": _with_shape(_gpt_neox),
    "opt": _with_shape(_opt),
    "bloom": _with_shape(_bloom),
}
