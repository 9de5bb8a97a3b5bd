"""Categorical distributions over the entries of a codebook."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, device
from jaxtyping import Float


def log_softmax(logits: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
    """Logarithms of the probabilities over the last axis: (..., entries) -> (..., entries)."""
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def gumbel_softmax(
    logits: Float[Any, "*shape"], uniform: Float[Any, "*shape"], temperature: float
) -> Float[Any, "*shape"]:
    """Relaxed draws of an entry (Jang et al. 2017, arXiv 1611.01144, eq. 2): (..., entries) -> (..., entries).

    Args:
        logits: unnormalised log-probabilities.
        uniform: in [0, 1), shaped like `logits`.
        temperature: above 0; near 0 a draw is one entry.
    """
    xp = array_namespace(logits)
    # Half of the spacing of 24-bit uniform numbers keeps the logarithms finite.
    gumbel = -xp.log(-xp.log(uniform * (1 - 2**-24) + 2**-25))
    return xp.exp(log_softmax((logits + gumbel) / temperature))


def most_likely(logits: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
    """One-hot of the most likely entry, the first among equals: (..., entries) -> (..., entries)."""
    xp = array_namespace(logits)
    entries = xp.arange(logits.shape[-1], device=device(logits))
    return xp.astype(xp.argmax(logits, axis=-1, keepdims=True) == entries, logits.dtype)


def uniform_kl_bits(logits: Float[Any, " b *rest"]) -> Float[Any, " b"]:
    """KL to the uniform distribution over the last axis, averaged over all but the first axis, in bits: (b,).

    log2(entries) less the entropy; (b, ..., entries) -> (b,).
    """
    xp = array_namespace(logits)
    log_p = log_softmax(logits)
    negative_entropy = xp.sum(xp.exp(log_p) * log_p, axis=-1)
    rest = tuple(range(1, negative_entropy.ndim))
    return (xp.mean(negative_entropy, axis=rest) + math.log(logits.shape[-1])) / math.log(2)
