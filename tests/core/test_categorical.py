"""Categorical distributions: closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_vfs.core.categorical import gumbel_softmax, log_softmax, most_likely, uniform_kl_bits

pytestmark = pytest.mark.numeric


def test_kl_to_uniform_codes_in_bits() -> None:
    even, sure, half = np.zeros(4), np.array([100.0, 0, 0, 0]), np.log(np.array([0.5, 0.5, 1e-30, 1e-30]))
    logits = np.stack([np.stack([even, even]), np.stack([sure, even]), np.stack([half, half])])
    np.testing.assert_allclose(uniform_kl_bits(logits), [0, (2 + 0) / 2, 1], atol=1e-12)


def test_log_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(log_softmax(np.array([1e4, 1e4 + np.log(3)])), np.log([0.25, 0.75]))


def test_draws_have_the_probabilities_of_their_entries() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.7]))
    uniform = np.random.default_rng(0).random((20000, 3))
    drawn = gumbel_softmax(np.broadcast_to(logits, (20000, 3)), uniform, temperature=1e-3)
    np.testing.assert_allclose(drawn.sum(axis=-1), 1, atol=1e-9)
    np.testing.assert_allclose(drawn.mean(axis=0), [0.1, 0.2, 0.7], atol=0.01)


def test_a_relaxed_draw_is_the_softmax_of_logits_and_gumbel_noise() -> None:
    logits, uniform = np.array([[0.3, -0.2]]), np.array([[0.25, 0.5]])
    perturbed = (logits - np.log(-np.log(uniform))) / 2.0
    expected = np.exp(perturbed) / np.exp(perturbed).sum()
    np.testing.assert_allclose(gumbel_softmax(logits, uniform, 2.0), expected, rtol=1e-5)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_numbers_are_finite(number: float) -> None:
    drawn = gumbel_softmax(np.zeros((1, 2), dtype=np.float32), np.array([[number, 0.5]], dtype=np.float32), 0.5)
    assert np.isfinite(drawn).all()


def test_the_most_likely_entry_is_one_hot_and_the_first_among_equals() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    np.testing.assert_array_equal(most_likely(logits), [[0, 1, 0], [1, 0, 0]])
