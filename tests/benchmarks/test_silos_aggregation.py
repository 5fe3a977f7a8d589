"""The benchmark's own arm computes the mean, with any number of threads; its memory is counted."""

from __future__ import annotations

import numpy as np

from zerofleet.benchmarks.silos_aggregation import MEMORY_LAYERS, deltas_of, inspected, memory_of_fresh_process, ours

SHAPES = {"weight": (300, 500), "norm": (500,)}


def test_our_arm_is_the_weighted_mean_with_any_number_of_threads():
    deltas, tokens = deltas_of(3, SHAPES), [1, 2, 5]
    means = ours(deltas, tokens)
    for name, shape in SHAPES.items():
        expected = (
            sum(count * layers[name].astype(np.float64) for count, layers in zip(tokens, deltas, strict=True)) / 8
        )
        assert means[name].shape == shape
        np.testing.assert_allclose(means[name], expected, rtol=1e-6, atol=1e-12)
    threaded = ours(deltas, tokens, num_threads=3)
    assert all(means[name].tobytes() == threaded[name].tobytes() for name in SHAPES)


def test_inspection_finds_the_norms():
    deltas = deltas_of(2, SHAPES)
    expected = [np.linalg.norm(np.concatenate([layer.reshape(-1) for layer in layers.values()])) for layers in deltas]
    np.testing.assert_allclose(inspected(deltas), expected, rtol=1e-5)


def test_memory_is_that_of_the_result_and_little_more(tmp_path):
    (layers,) = deltas_of(1, MEMORY_LAYERS)
    layers["weight"].tofile(tmp_path / "delta.bin")
    result_mb = layers["weight"].nbytes / 1e6
    assert 0.9 * result_mb < memory_of_fresh_process("ours", 5, tmp_path / "delta.bin") < 2 * result_mb
