"""Memory of results: lent again when no tensor of it is left, and not before."""

from __future__ import annotations

import copy
import errno
import gc
import pickle

import pytest
import torch

from fedclip_plugin import ops

LIKE = torch.empty(0)
WIDE = 1 << 18  # floats: a MiB


def test_a_block_is_lent_again_once_its_last_view_is_gone() -> None:
    pool = ops.BufferPool()
    first = pool.rows(2, WIDE, LIKE)
    assert (first.shape, first.dtype, first.is_contiguous()) == (
        (2, WIDE),
        torch.float32,
        True,
    )
    address = first.data_ptr()
    view = first[1].view(512, -1)[3:].detach()
    view.fill_(7)
    del first
    second = pool.rows(2, WIDE, LIKE)
    second.fill_(0)
    assert second.data_ptr() != address
    assert (view == 7).all()
    del view
    gc.collect()
    assert pool.rows(2, WIDE, LIKE).data_ptr() == address


def test_a_block_serves_its_own_size_alone_and_others_go_where_it_is_missing() -> None:
    pool = ops.BufferPool()
    blocks = [pool.rows(n, WIDE, LIKE) for n in (4, 2, 2)]
    twos = {block.data_ptr() for block in blocks[1:]}
    blocks.clear()
    gc.collect()
    held = pool.rows(2, WIDE, LIKE)
    assert held.data_ptr() in twos
    assert sum(map(len, pool._free.values())) == 2
    large = pool.rows(3, WIDE, LIKE)
    assert not pool._free
    del held, large
    gc.collect()
    assert sorted(pool._free) == [8 << 20 >> 2, 12 << 20 >> 2]


def test_tracing_gets_a_fake() -> None:
    with torch._subclasses.FakeTensorMode():
        fake = ops.BufferPool().rows(2, WIDE, torch.empty(0))
    assert type(fake) is not torch.Tensor
    assert fake.shape == (2, WIDE)


def test_what_is_free_is_given_back_on_request() -> None:
    pool = ops.BufferPool()
    kept, free = pool.rows(2, WIDE, LIKE), pool.rows(2, WIDE, LIKE)
    kept.fill_(1)
    del free
    gc.collect()
    assert pool._free
    pool.let_go()
    assert not pool._free
    assert kept.sum() == 2 * WIDE


def test_results_outlive_their_pool() -> None:
    rows = ops.BufferPool().rows(2, WIDE, LIKE)
    gc.collect()
    rows.fill_(3)
    assert rows.sum() == 6 * WIDE


def test_other_types_and_small_blocks() -> None:
    pool = ops.BufferPool()
    assert pool.rows(3, WIDE, LIKE.double()).dtype == torch.float64
    assert pool.rows(3, 5, LIKE).shape == (3, 5)
    assert pool.rows(0, WIDE, LIKE).shape == (0, WIDE)
    assert pool.rows(3, WIDE, LIKE.to("meta")).is_meta


def test_without_mappings_memory_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("fedclip_plugin.ops.memory.mmap.mmap", refuse)
    assert ops.BufferPool().rows(2, WIDE, LIKE).shape == (2, WIDE)


def test_a_copied_pool_shares_nothing() -> None:
    pool = ops.BufferPool()
    address = pool.rows(2, WIDE, LIKE).data_ptr()
    kept = pool.rows(2, WIDE, LIKE)
    assert kept.data_ptr() == address
    for twin in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert twin.rows(2, WIDE, LIKE).data_ptr() != address


def test_rounds_of_one_pool_have_the_same_bits() -> None:
    torch.manual_seed(0)
    data = [
        ops.FreshClient(
            torch.randn(9, 256), torch.randint(0, 3, (9,)), torch.randperm(9)[None]
        )
        for _ in range(3)
    ]
    text = torch.nn.functional.normalize(torch.randn(3, 256), dim=1)
    start = [torch.randn(s) * 0.05 for s in ((256, 256), (256,), (256, 256), (256,))]
    hyper = ops.Hyperparameters(4, 1e-3, 0.9, 0.98, 1e-6, 0.2, 100.0)
    pool, found = ops.BufferPool(), []
    for _ in range(3):
        params, losses = ops.fresh_round(data, text, start, hyper, pool)
        found.append([*losses, *(t.clone() for own in params for t in own)])
        del params
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
