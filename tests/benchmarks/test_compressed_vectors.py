"""The codec of the benchmark of compressed vectors, by hand and on normal variables."""

import numpy as np
import pytest

from tests.benchmarks.compressed_vectors import ERRORS, Transform, allocated_bits, principal


def test_bits_go_where_the_variance_is():
    # Of variances 16 and 1: a second bit of the one saves 3.9, a first of the other 0.6.
    assert allocated_bits(np.array([16.0, 1.0]), 2).tolist() == [2, 0]
    assert allocated_bits(np.array([16.0, 1.0]), 5).tolist() == [4, 1]
    assert allocated_bits(np.ones(3), 99).tolist() == [8, 8, 8]


def test_codes_fit_their_bits_and_lose_what_the_theory_says(rng):
    turn, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    deviations = 2.0 ** -np.arange(16)
    vectors = rng.normal(size=(20_000, 16)) * deviations @ turn + 3
    codec = Transform(vectors, 2)
    codes = codec.encode(vectors)
    assert codec.bits_E.sum() == 2 * 16
    assert (codes >= 0).all() and (codes < 2**codec.bits_E).all()
    lost = np.square(codec.decode(codes) - vectors).sum() / len(vectors)
    expected = sum(v * ERRORS[b] for v, b in zip(deviations**2, codec.bits_E, strict=True))
    assert lost == pytest.approx(expected, rel=0.05)
    by_components = np.square(principal(vectors, 2) - vectors).sum() / len(vectors)
    assert lost < 0.05 * by_components
