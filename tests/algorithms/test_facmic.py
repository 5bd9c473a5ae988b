"""FACMIC's formula: the local MMD and its ramp."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin.algorithms.facmic import local_mmd, ramp


def literal_mmd(s: Tensor, t: Tensor, y: Tensor, chance: Tensor) -> float:
    """The paper's sum written out in loops, in float64."""
    rows = torch.cat([s, t]).double().tolist()
    squares = [
        [sum((a - b) ** 2 for a, b in zip(one, two)) for two in rows] for one in rows
    ]
    count = len(rows)
    width = sum(map(sum, squares)) / (count * count - count) / 4

    def kernel(i: int, j: int) -> float:
        return sum(math.exp(-squares[i][j] / (width * 2**k)) for k in range(5))

    said = chance.argmax(dim=1).tolist()
    both = set(y.tolist()) & set(said)
    total = 0.0
    for c in both:
        u = [float(label == c) for label in y.tolist()]
        v = chance[:, c].double().tolist()
        u, v = [a / sum(u) for a in u], [b / sum(v) for b in v]
        for i in range(len(s)):
            for j in range(len(s)):
                total += u[i] * u[j] * kernel(i, j)
            for j in range(len(t)):
                total -= 2 * u[i] * v[j] * kernel(i, len(s) + j)
        for i in range(len(t)):
            for j in range(len(t)):
                total += v[i] * v[j] * kernel(len(s) + i, len(s) + j)
    return total / len(both)


def domains(
    rows: tuple[int, int] = (9, 6), classes: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    s, t = (
        F.normalize(torch.randn(n, 7, generator=generator).double(), dim=1)
        for n in rows
    )
    y = torch.randint(0, classes - 1, (rows[0],), generator=generator)
    scores = 3 * torch.randn(rows[1], classes, generator=generator).double()
    return s, t, y, scores.softmax(dim=1)


def test_the_local_mmd_is_the_papers_sum():
    s, t, y, chance = domains()
    assert float(local_mmd(s, t, y, chance)) == pytest.approx(
        literal_mmd(s, t, y, chance), rel=1e-12
    )


def test_the_local_mmd_has_the_right_gradient():
    """The kernel's width is a constant of the gradient, so both features share it."""
    s, t, y, chance = domains()
    rows = torch.cat([s, t]).requires_grad_()
    local_mmd(rows[: len(s)], rows[len(s) :], y, chance).backward()
    step = 1e-6
    with torch.no_grad():
        squares = torch.cdist(rows, rows).square()
        count = len(rows)
        width = squares.sum() / (count * count - count) / 4
    found = torch.zeros_like(rows)
    for i in range(count):
        for d in range(rows.shape[1]):
            ends = []
            for sign in (1, -1):
                moved = rows.detach().clone()
                moved[i, d] += sign * step
                ends.append(fixed_width(moved, len(s), y, chance, width))
            found[i, d] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(rows.grad, found, rtol=1e-5, atol=1e-8)


def fixed_width(
    rows: Tensor, own: int, y: Tensor, chance: Tensor, width: Tensor
) -> float:
    squares = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    kernel = sum((-squares / (width * 2**k)).exp() for k in range(5))
    labels, said = F.one_hot(y, chance.shape[1]).double(), chance.argmax(dim=1)
    both = [c for c in range(chance.shape[1]) if c in y and c in said]
    total = 0.0
    for c in both:
        signed = torch.cat(
            [labels[:, c] / labels[:, c].sum(), -chance[:, c] / chance[:, c].sum()]
        )
        total += float(signed @ kernel @ signed)
    return total / len(both)


def test_without_a_class_in_common_nothing_is_drawn_together():
    s, t, y, _ = domains()
    nowhere = torch.zeros(len(t), 5).double()
    nowhere[:, 4] = 1.0  # the labels are 0 to 3
    assert float(local_mmd(s, t, y, nowhere)) == 0.0


def test_equal_features_are_at_no_distance():
    s, _, y, _ = domains()
    sure = F.one_hot(y, 5).double()
    assert float(local_mmd(s, s, y, sure)) == pytest.approx(0.0, abs=1e-12)
    alike = s[:1].expand(9, -1)
    assert math.isfinite(float(local_mmd(alike, alike, y, sure)))


def test_the_ramp_rises_and_stays():
    assert ramp(0, 1000, 1.0) == 0.0
    assert ramp(500, 1000, 1.0) == pytest.approx(2 / (1 + math.exp(-0.5)) - 1)
    assert ramp(5000, 1000, 1.0) == ramp(1000, 1000, 1.0)
    assert ramp(0, 0, 1.0) == 1.0
