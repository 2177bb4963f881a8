"""From logits to the next token: pure functions on [rows, vocabulary] float32.

The filters keep what the reference implementation's keep, ties and boundaries included. The two that must
sort try a few hundred tokens first: sorting a vocabulary of 50,000 takes a CPU longer than a layer of the
model. A removed token's logit is -inf.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from daybreak.engine.settings import Sampling

# Penalties
# X----------------------------------------------------------------------------------------------------------


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of `seen` tokens ([rows, vocabulary] bool): divided by `penalty` if positive, else multiplied.

    CTRL (arXiv 1909.05858), section 4.1, with the sign rule that keeps a penalty a penalty for negative
    logits.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def penalise_presence(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """logit - frequency * count - presence * (count > 0); `counts` [rows, vocabulary] of the output, not the
    prompt."""
    return logits - frequency * counts - presence * (counts > 0).to(logits.dtype)


# Filters, in the order in which `narrow` applies them ----------------------------------------


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest, and all that tie with the k-th."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float, candidates: int = 512) -> Tensor:
    """The likeliest tokens that together hold probability `p`, one at least (arXiv 1904.09751, section 3.1).

    Of tokens that tie at the border as many stay as are needed; which ones, torch.sort decides, as in the
    reference. `candidates`: so many of the likeliest are sorted first, then eight times as many, then the
    whole vocabulary.
    """
    while candidates < logits.shape[-1]:
        short = _keep_top_p_of_few(logits, p, candidates)
        if short is not None:
            return short
        candidates *= 8
    ascending, order = logits.sort()
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - p
    removed[..., -1] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


def _keep_top_p_of_few(logits: Tensor, p: float, candidates: int) -> Tensor | None:
    """`keep_top_p` decided among the likeliest tokens; None where they do not reach `p` or the border is a
    tie."""
    total = logits.logsumexp(-1, keepdim=True)
    values = logits.topk(candidates).values  # [rows, candidates], descending
    above = (values - total).exp().cumsum(-1)  # probability of a token and all before it
    kept = torch.cat([torch.ones_like(above[..., :1], dtype=torch.bool), above[..., :-1] < p], dim=-1)
    last = kept.sum(-1, keepdim=True) - 1
    border = values.gather(-1, last)
    following = values.gather(-1, (last + 1).clamp(max=candidates - 1))
    if bool(((last == candidates - 1) | (following == border)).any()):
        return None
    return logits.masked_fill(logits < border, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least `p` times as probable as the likeliest (arXiv 2407.01082, section 3)."""
    probabilities = logits.softmax(-1)
    highest, likeliest = probabilities.max(-1, keepdim=True)
    removed = (probabilities < p * highest).scatter(-1, likeliest, False)
    return logits.masked_fill(removed, -math.inf)


def keep_typical(logits: Tensor, mass: float, candidates: int = 512) -> Tensor:
    """Tokens whose surprise is nearest to the entropy, until they hold `mass` (arXiv 2202.00666, section 4).

    `candidates`: as above, of the nearest.
    """
    log_probabilities = logits.log_softmax(-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, keepdim=True)
    oddity = (-log_probabilities - entropy).abs()
    while candidates < logits.shape[-1]:
        nearest = oddity.topk(candidates, largest=False)
        reached = log_probabilities.gather(-1, nearest.indices).exp().cumsum(-1)
        if bool((reached[..., -1] >= mass).all()):
            return _nearer(logits, oddity, nearest.values, reached < mass)
        candidates *= 8
    ascending, order = oddity.sort()
    reached = logits.gather(-1, order).softmax(-1).cumsum(-1)
    return _nearer(logits, oddity, ascending, reached < mass)


def _nearer(logits: Tensor, oddity: Tensor, ascending: Tensor, short: Tensor) -> Tensor:
    """Remove what is odder than the first of `ascending` that is not `short` of the mass."""
    last = short.sum(-1, keepdim=True).clamp(max=ascending.shape[-1] - 1)
    return logits.masked_fill(oddity > ascending.gather(-1, last), -math.inf)


def narrow(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature and filters, in the reference's order: temperature, top-k, top-p, min-p, typical."""
    if sampling.heat != 1.0:
        logits = logits / sampling.heat
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    if sampling.typical_p < 1.0:
        logits = keep_typical(logits, sampling.typical_p)
    return logits


# Chance ----------------------------------------

_INCREMENT, _FIRST, _SECOND = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def stream_key(seed: int, prompt: Sequence[int], sample: int) -> int:
    """The key of one text's random numbers, an int64: it depends on nothing else, least of all on the rest of
    a batch."""
    words = ",".join(map(str, (seed, sample, *prompt)))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little", signed=True)


def gumbel(keys: Tensor, step: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float32, a function of key, step and token id; int64 `keys` and `ids`
    broadcast.

    The numbers are SplitMix64's (Steele et al., Fast Splittable Pseudorandom Number Generators, 2014),
    counted by token id from a start that key and step are mixed into, so no generator's state is carried
    along.
    """
    bits = _mix(_mix(keys + step) + (ids + 1) * _INCREMENT)
    # 53 bits keep small numbers exact in float32; a maximum below 1 keeps the noise of the others finite.
    uniform = _shift(bits, 11).float().mul_(2.0**-53).clamp_(2.0**-53, 1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(numbers: Tensor) -> Tensor:
    mixed = (numbers ^ _shift(numbers, 30)).mul_(_FIRST)
    mixed = (mixed ^ _shift(mixed, 27)).mul_(_SECOND)
    return mixed ^ _shift(mixed, 31)


def _shift(numbers: Tensor, places: int) -> Tensor:
    """Right shift of int64 read as unsigned."""
    return (numbers >> places).bitwise_and_((1 << (64 - places)) - 1)


def draw(logits: Tensor, keys: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """One token per row with probability softmax(logits): its perturbed logit and its id, [rows] each.

    The Gumbel-max trick: argmax(logits + noise). The two highest sums lie closer than d in a share of at most
    d of all draws, whatever the vocabulary; so logits that differ in the last bits (batched and single
    products round differently) almost always give the same token. The inverse of a cumulative sum would be
    far more brittle.
    """
    left = ~logits.isneginf()
    if 4 * int(left.sum()) < logits.numel():  # noise for all tokens would mostly be wasted
        rows, ids = left.nonzero(as_tuple=True)
        disturbed = torch.full_like(logits, -math.inf)
        disturbed[rows, ids] = logits[rows, ids] + gumbel(keys[rows], step, ids)
    else:
        disturbed = logits + gumbel(keys[:, None], step, torch.arange(logits.shape[-1], device=keys.device))
    best = disturbed.max(-1)
    return best.values, best.indices
