"""Weighted means: exact enough, and the inputs stay as they are."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from fedclip_plugin import ops
from tests.ops.inputs import same

OPS = torch.ops.fedclip
COUNTS = (1, 2, 4, 7, 8, 9, 16, 17, 100)
SHAPES = ((5,), (), (3, 7), (64, 33), (36_001,), (0, 4))  # more than two blocks


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_mean(count, shape):
    torch.manual_seed(count)
    xs = [torch.randn(shape) for _ in range(count)]
    weights = torch.rand(count) + 0.1
    mean = OPS.weighted_mean(xs, weights)
    exact = ops.weighted_mean_reference([x.double() for x in xs], weights)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "shape",
    [(5,), (3, 7), (1500, 33), (2, 36_001), (0, 4), (4, 2, 3), (3000,), ()],
)
@pytest.mark.parametrize("one_scale", [False, True])
def test_weighted_mean_int8(count, shape, one_scale):
    torch.manual_seed(count)
    qs = [torch.randint(-128, 128, shape, dtype=torch.int8) for _ in range(count)]
    rows = (1,) if one_scale else shape[:1] or (1,)
    scales = [torch.rand(rows) / 100 for _ in range(count)]
    weights = torch.rand(count, dtype=torch.float64) + 0.1
    mean = OPS.weighted_mean_int8(qs, scales, weights)
    exact = ops.weighted_mean_int8_reference(qs, scales, weights)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, exact, rtol=0, atol=2e-6)


def test_a_thousand_clients_lose_less_than_5e_7_of_the_rms():
    torch.manual_seed(0)
    xs = [torch.randn(3000) for _ in range(1000)]
    weights = torch.rand(1000) + 0.5
    share = weights.double() / weights.double().sum()
    exact = sum(s * x.double() for s, x in zip(share, xs))
    error = (ops.weighted_mean(xs, weights).double() - exact).abs().max()
    assert float(error / exact.square().mean().sqrt()) < 5e-7


def test_weighted_means_of_strided_tensors():
    xs = [torch.randn(6, 8).t() for _ in range(10)]
    weights = torch.ones(10)
    mean = OPS.weighted_mean(xs, weights)
    assert same(mean, OPS.weighted_mean([x.contiguous() for x in xs], weights))
    qs = [torch.randint(-9, 9, (6, 8), dtype=torch.int8).t() for _ in range(3)]
    scales = [torch.rand(16)[::2] for _ in range(3)]
    mean = OPS.weighted_mean_int8(qs, scales, weights[:3])
    plain = [q.contiguous() for q in qs]
    assert same(mean, OPS.weighted_mean_int8(plain, scales, weights[:3]))


def test_the_inputs_stay_as_they_are():
    xs = [torch.randn(100) for _ in range(9)]
    before = [x.clone() for x in xs]
    mean = OPS.weighted_mean(xs[:1], torch.tensor([2.0]))
    assert torch.equal(mean, xs[0])
    assert mean.data_ptr() != xs[0].data_ptr()
    OPS.weighted_mean(xs, torch.ones(9))
    assert all(torch.equal(a, b) for a, b in zip(xs, before))


def int8(*shape, device="cpu"):
    return torch.zeros(shape, dtype=torch.int8, device=device)


@pytest.mark.parametrize(
    ("xs", "message"),
    [
        ([torch.ones(2), torch.ones(3)], r"xs\[1\]: expected shape \(2,\), got \(3,\)"),
        ([torch.ones(2), torch.ones(2).double()], r"xs\[1\]: expected torch.float32"),
        ([torch.ones(2).double(), torch.ones(2)], r"xs\[1\]: expected torch.float64"),
        ([torch.ones(2), torch.ones(2, device="meta")], r"xs\[1\]: .* on meta"),
        ([], "expected at least one tensor"),
    ],
)
def test_tensors_that_are_not_alike_are_named(xs, message):
    with pytest.raises(ValueError, match=message):
        ops.weighted_mean(xs, torch.ones(len(xs)))


@pytest.mark.parametrize(
    ("qs", "rows", "message"),
    [
        ([int8(2, 3), int8(2, 4)], (2, 2), r"qs\[1\]: expected int8 \(2, 3\)"),
        ([int8(2, 3), torch.ones(2, 3)], (2, 2), r"qs\[1\]: expected int8 \(2, 3\)"),
        ([int8(), int8()], (1, 3), r"scales\[1\]: expected float32 \(1,\)"),
        ([int8(2, 3), int8(2, 3)], (1, 2), r"scales\[1\]: expected float32 \(1,\)"),
        ([int8(2, 3), int8(2, 3)], (2,), "scales: expected 2, got 1"),
        ([int8(2, 3), int8(2, 3)], (2, 3), r"scales\[1\]: expected float32 \(2,\)"),
        ([int8(2, 3), int8(2, 3, device="meta")], (2, 2), "got meta and cpu"),
        ([], (), "expected at least one tensor"),
    ],
)
def test_int8_that_does_not_fit_is_named(qs, rows, message):
    scales = [torch.ones(count) for count in rows]
    with pytest.raises(ValueError, match=message):
        ops.weighted_mean_int8(qs, scales, torch.ones(len(qs)))


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights: expected finite, non-negative"):
        ops.weighted_mean([torch.ones(2)] * 2, torch.tensor(weights))


def test_the_callers_keep_their_tensors():
    """The kernel lets go of the lists it was given, and of nothing else."""
    xs = [torch.randn(40) for _ in range(20)]
    counts = [sys.getrefcount(x) for x in xs]
    want = torch.stack(xs).mean(0)
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(ops.weighted_mean(xs, torch.ones(20)))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for mean in found:
        torch.testing.assert_close(mean, want)
    assert [sys.getrefcount(x) for x in xs] == counts
