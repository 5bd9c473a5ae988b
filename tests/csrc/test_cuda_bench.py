"""The commands for a GPU, as far as they go without one: on the CPU, small sizes."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import exercise as gpu_exercise
from benchmarks.gpu import resources as gpu_resources
from benchmarks.gpu import rivals as gpu_rivals
from fedclip_plugin.bench import rivals

SMALL = gpu_bench.Sizes(
    device="cpu",
    rounds=3,
    dim=16,
    batches=(8, 4),
    other_dims=(12,),
    steps=4,
    clients=(1, 3),
    groups=(2, 4),
    forward_rows=(8,),
    mean_clients=(2, 9),
    mean_elements=(100, 512),
    copy_bytes=2**16,
    compiled=False,
)
REPORT = """\
ptxas info    : Compiling entry function '_ZN7fedclip9tanh_rowsEPfPKfll' for 'sm_90'
ptxas info    : Function properties for _ZN7fedclip9tanh_rowsEPfPKfll
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""


def test_all_measurements_and_their_tables():
    rows, facts = gpu_bench.run(SMALL, 1000)
    assert facts["left_out"] == 0
    assert facts["copy_gb_per_s"] > 0
    kinds = [r["what"] for r in rows]
    assert kinds.count("local step of one client") == 3
    assert kinds.count("weighted mean") == 4
    assert kinds.count("size of a group") == 3
    text = gpu_bench.markdown(
        {
            "machine": dict.fromkeys(
                ("gpu", "date", "torch", "cuda", "driver", "python"), "x"
            )
            | {"multiprocessors": 1},
            "checks": {"tests": "3 passed"},
            "rows": rows,
            **facts,
        }
    )
    assert "Checks: tests: 3 passed." in text
    assert "| 16 | 8 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 2 * len(set(kinds))


def test_what_takes_too_long_is_left_out():
    rows, facts = gpu_bench.run(SMALL, -1)
    assert rows == []
    assert facts["left_out"] > 10


def test_our_round_does_the_work_of_the_rival():
    client = gpu_rivals.make_client(16, 8, 4, "cpu")
    before = [p.clone() for p in client["params"]]
    gpu_rivals.ours([client], 8)()
    adapter = gpu_rivals.make_adapter(16, "cpu")
    trained = [p.detach() for p in adapter.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, trained))
    optimizer = gpu_rivals._adam(adapter)
    for rows in client["perm"].split(8):
        optimizer.zero_grad()
        x, text = client["x"][rows], client["text"][client["y"][rows]]
        rivals.eager_loss(adapter, x, text).backward()
        optimizer.step()
    for ours, theirs, start in zip(client["params"], adapter.parameters(), before):
        moved = float((theirs.detach() - start).norm())
        assert float((ours - theirs.detach()).norm()) < 1e-2 * moved


def test_stacked_clients_do_the_work_of_each_alone():
    text = gpu_rivals.make_client(16, 8, 4, "cpu")["text"]
    clients = [gpu_rivals.make_client(16, 8, 4, "cpu", seed, text) for seed in range(3)]
    before = [[p.clone() for p in c["params"]] for c in clients]
    together = gpu_rivals.Stacked(clients, 8)
    for rows in together.batches:
        together.optimizer.zero_grad()
        together.loss(rows).backward()
        together.optimizer.step()
    gpu_rivals.ours(clients, 8)()
    for i, (client, starts) in enumerate(zip(clients, before)):
        for ours, theirs, start in zip(client["params"], together.params, starts):
            moved = float((ours - start).norm())
            assert float((ours - theirs[i].detach()).norm()) < 1e-2 * moved


def test_tf32_is_allowed_for_the_rival_alone():
    products, seen = torch.backends.cuda.matmul, []

    def make():
        seen.append(products.allow_tf32)
        return lambda: seen.append(products.allow_tf32)

    before = products.allow_tf32
    gpu_rivals.tf32(make)()
    assert seen == [True, True]
    assert products.allow_tf32 == before


def test_a_rival_that_cannot_run_is_noted():
    def broken():
        raise RuntimeError("no compiler\nand more")

    found, note = gpu_rivals.possible({"good": lambda: lambda: 1, "bad": broken})
    assert list(found) == ["good"]
    assert note == "bad: no compiler"


def test_every_kernel_is_exercised(capsys):
    assert gpu_exercise.main("cpu") == 0
    assert "exercised" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_clear_line_and_exit_code_2(capsys):
    assert gpu_check.main([]) == 2
    said = capsys.readouterr()
    assert said.err == "gpu-check: torch sees no GPU on this machine\n"
    assert said.out == ""


def test_the_report_is_named_after_the_gpu(tmp_path):
    machine = dict.fromkeys(("date", "torch", "cuda", "driver", "python"), "x")
    machine |= {"gpu": "NVIDIA H200 (SXM)", "multiprocessors": 132}
    report = {"machine": machine, "checks": {}, "rows": [], "left_out": 2}
    page = gpu_check.write(report | {"copy_gb_per_s": 4300}, tmp_path)
    path = tmp_path / "gpu-nvidia-h200-sxm.md"
    assert path.read_text() == page
    assert "2 measurements left out" in page
    assert json.loads(path.with_suffix(".json").read_text())["copy_gb_per_s"] == 4300


def test_the_compilers_report_is_read():
    (kernel,) = gpu_resources.kernels_in(REPORT)
    assert kernel == ("tanh_rows", "sm_90", 20, 12, 16)
