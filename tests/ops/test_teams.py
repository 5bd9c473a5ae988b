"""Training on teams of threads: the same bits on any number and in any team."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedclip_plugin import capabilities, ops
from tests.ops.inputs import ADAM, OPS, SCALE, make_client, whole_round

pytestmark = pytest.mark.skipif(
    not capabilities()["compiled"], reason="teams are those of the compiled kernels"
)
SAMPLES = (3, 1, 2)  # batches of each client, and a part of one
# only small ones where all tests of operators run once more, on another ISA
WIDTHS = (72,) if "OPS_TESTS_INNER" in os.environ else (512, 1024)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.ops.fedclip_benchmark.team_size(0)


def local(dim: int, batch: int, precision: str = "fp32") -> list[Tensor]:
    """Losses, parameters and moments of a round of three clients."""
    clients = [
        make_client(dim, batch * count + 2, 5, seed)
        for seed, count in enumerate(SAMPLES)
    ]
    losses = whole_round(OPS.local_round, clients, batch, precision)
    return [*losses, *(t for c in clients for t in c.state())]


def fresh(dim: int, batch: int) -> list[Tensor]:
    """The same from one start."""
    clients = [make_client(dim, batch * n + 2, 5, s) for s, n in enumerate(SAMPLES)]
    batches = [ops.FreshClient(c.x, c.y, c.perm[None]) for c in clients]
    hyper = ops.Hyperparameters(batch, *ADAM, SCALE)
    params, losses = ops.fresh_round(batches, clients[0].text, clients[0].params, hyper)
    return [*losses, *(t for own in params for t in own)]


def crews() -> Iterator[tuple[int, int]]:
    """Threads, and members of a team."""
    for threads in (2, 3, 4):
        for members in (0, 1, 2, 4):
            yield threads, members


@pytest.mark.parametrize("batch", [2, 12, 32])
@pytest.mark.parametrize("dim", WIDTHS)
def test_any_crew_and_any_team_gives_the_same_bits(dim: int, batch: int) -> None:
    torch.set_num_threads(1)
    want = [*local(dim, batch), *fresh(dim, batch)]
    for threads, members in crews() if dim < 1024 else [(2, 2), (3, 1), (4, 4)]:
        torch.set_num_threads(threads)
        torch.ops.fedclip_benchmark.team_size(members)
        found = [*local(dim, batch), *fresh(dim, batch)]
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


def test_bfloat16_and_odd_widths_too() -> None:
    torch.set_num_threads(1)
    want = local(72, 16, "bf16")
    for threads, members in crews():
        torch.set_num_threads(threads)
        torch.ops.fedclip_benchmark.team_size(members)
        found = local(72, 16, "bf16")
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


def test_more_threads_than_units_or_clients() -> None:
    torch.set_num_threads(1)
    want = local(8, 4)
    torch.set_num_threads(16)
    for members in (0, 1, 3, 16, 100):
        torch.ops.fedclip_benchmark.team_size(members)
        found = local(8, 4)
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


def test_the_size_of_teams_is_told_and_checked() -> None:
    assert torch.ops.fedclip_benchmark.team_size(3) == 0
    assert torch.ops.fedclip_benchmark.team_size(0) == 3
    with pytest.raises(RuntimeError, match="members: expected at least 0, got -1"):
        torch.ops.fedclip_benchmark.team_size(-1)
