"""The operator squared_distances against float64, on every shape and thread count."""

from __future__ import annotations

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
