"""Squared distances, and norms of int8, against float64: any shape, any threads."""

from __future__ import annotations

import math

import pytest
import torch

from fedclip_plugin import ops


def tensors(count: int, shape: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (15,), (16,), (17,), (64,), (4095,), (4097,), (33, 129)]
)
def test_values(shape):
    *xs, origin = tensors(4, shape)
    found = ops.squared_distances(xs, origin)
    exact = torch.stack([(x.double() - origin.double()).square().sum() for x in xs])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=3e-7, atol=0)


def test_small_steps_from_large_values_are_not_lost():
    (origin,) = tensors(1, (200, 300))
    x = 100 + origin + 1e-3
    origin = 100 + origin
    exact = (x.double() - origin.double()).square().sum()
    found = ops.squared_distances([x], origin)[0]
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


def test_the_same_bits_on_any_number_of_threads():
    *xs, origin = tensors(9, (100, 101))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(ops.squared_distances(xs, origin))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_strided_and_unaligned_tensors():
    base, other = tensors(2, (41, 37))
    pairs = [
        (base.t(), other.t()),
        (base[:, 1:], other[:, 1:]),
        (base[::2], other[1::2][:20].repeat(2, 1)[:21]),
    ]
    for x, origin in pairs:
        exact = (x.double() - origin.double()).square().sum()
        found = ops.squared_distances([x], origin)[0]
        torch.testing.assert_close(found, exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("place", [0, 17, 4096, 4999])
def test_what_is_not_finite_shows(value, place):
    x, origin = torch.zeros(5000), torch.zeros(5000)
    x[place] = value
    assert not bool(torch.isfinite(ops.squared_distances([x], origin)[0]))


def test_zero_is_exact():
    (x,) = tensors(1, (50, 50))
    assert ops.squared_distances([x, x.clone()], x).tolist() == [0.0, 0.0]


def test_no_tensor_and_no_element():
    assert ops.squared_distances([], torch.zeros(3)).shape == (0,)
    found = ops.squared_distances([torch.zeros(0, 3)], torch.zeros(0, 3))
    assert found.tolist() == [0.0]


def test_float64_goes_to_the_reference():
    *xs, origin = (t.double() for t in tensors(3, (20,)))
    want = torch.stack([(x - origin).square().sum() for x in xs])
    torch.testing.assert_close(
        ops.squared_distances(xs, origin), want, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4), r"xs\[1\]: expected shape \(3,\), got \(4,\)"),
        (torch.zeros(3).double(), r"xs\[1\]: expected torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(x, message):
    with pytest.raises(ValueError, match=message):
        ops.squared_distances([torch.zeros(3), x], torch.zeros(3))


def test_direct_calls_are_guarded_too():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(
        "fedclip::squared_distances", "CPU"
    ):
        pytest.skip("no compiled kernel here")
    with pytest.raises(RuntimeError, match=r"xs\[1\]: expected the type and shape"):
        torch.ops.fedclip.squared_distances([torch.zeros(3)], torch.zeros(4))


def test_opcheck():
    *xs, origin = tensors(3, (5, 7))
    torch.library.opcheck(torch.ops.fedclip.squared_distances.default, (xs, origin))


INT8_SHAPES = [(), (1,), (17,), (5, 3), (3, 64), (2, 4097), (70, 33), (4, 2, 3), (0, 4)]


def int8s(count: int, shape: tuple[int, ...], one_scale: bool):
    torch.manual_seed(len(shape))
    qs = [torch.randint(-128, 128, shape, dtype=torch.int8) for _ in range(count)]
    rows = (1,) if one_scale else shape[:1] or (1,)
    return qs, [torch.rand(rows) / 100 for _ in range(count)]


@pytest.mark.parametrize("shape", INT8_SHAPES)
@pytest.mark.parametrize("one_scale", [False, True])
def test_norms_of_int8(shape, one_scale):
    qs, scales = int8s(3, shape, one_scale)
    found = ops.squared_norms_int8(qs, scales)
    exact = ops.squared_norms_int8_reference(qs, scales)
    by_hand = [
        math.fsum(
            (float(scale) * float(step)) ** 2
            for row, scale in zip(q.reshape(len(s), -1) if q.numel() else [], s)
            for step in row
        )
        for q, s in zip(qs, scales)
    ]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=3e-7, atol=0)
    torch.testing.assert_close(exact.tolist(), by_hand, rtol=1e-9, atol=0)


def test_the_largest_steps_lose_nothing():
    q = torch.full((2, 5000), -128, dtype=torch.int8)
    found = ops.squared_norms_int8([q], [torch.tensor([1.0, 2.0])])
    assert float(found[0]) == 5 * 5000 * 128.0**2


def test_strided_int8_and_any_number_of_threads():
    base = torch.randint(-128, 128, (41, 34), dtype=torch.int8)
    qs, scales = [base.t(), base[:34, 7:].repeat(1, 2)[:, :41]], [torch.rand(68)[::2]]
    want = ops.squared_norms_int8_reference(qs, scales * 2)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = ops.squared_norms_int8(qs, scales * 2)
            torch.testing.assert_close(found, want, rtol=3e-7, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf])
def test_a_scale_that_is_no_number_shows(scale):
    qs, scales = int8s(2, (3, 40), False)
    scales[1][2] = scale
    finite = torch.isfinite(ops.squared_norms_int8(qs, scales))
    assert finite.tolist() == [True, False]


def test_int8_that_does_not_fit_is_named():
    qs, scales = int8s(2, (3, 40), False)
    with pytest.raises(ValueError, match=r"qs\[1\]: expected int8 \(3, 40\)"):
        ops.squared_norms_int8([qs[0], qs[1].float()], scales)
    with pytest.raises(ValueError, match=r"scales\[1\]: expected float32 \(3,\)"):
        ops.squared_norms_int8(qs, [scales[0], scales[1][:2]])
    with pytest.raises(ValueError, match="expected at least one tensor"):
        ops.squared_norms_int8([], [])
