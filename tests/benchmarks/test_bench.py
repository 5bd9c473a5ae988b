"""``fedclip bench``: what is measured, and how it is shown."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch

from fedclip_plugin import ops
from fedclip_plugin.bench import figure, rivals, suite, tables
from fedclip_plugin.bench.operators import make_state, make_training
from fedclip_plugin.bench.timing import Timing, interleave
from fedclip_plugin.cli import main
from fedclip_plugin.ops.kernels import pure_python

compiled = pytest.mark.skipif(pure_python(), reason="it times the compiled kernels")


@compiled
def test_quick_prints_the_tables_and_writes_the_figures(tmp_path, capsys):
    threads, file = torch.get_num_threads(), tmp_path / "b.json"
    argv = ["bench", "--quick", "--rounds", "2", "--threads", "1", "--json", str(file)]
    assert main(argv) == 0
    captured = capsys.readouterr()
    titles = (
        "Training step",
        "Adapter forward",
        "Weighted mean",
        "Round over",
        "One st",
    )
    for title in titles:
        assert title in captured.out
    assert "measure: " in captured.err
    report = json.loads(file.read_text())
    assert report["machine"]["fma_peak_gflops"] > 0
    steps = [r for r in report["rows"] if r["what"] == "training step"]
    assert [(r["threads"], r["batch"]) for r in steps] == [(1, 32)]
    assert {"eager", "eager, foreach", "eager, fused"} < set(steps[0]["ratio"])
    means = [r for r in report["rows"] if r["what"] == "weighted mean"]
    assert {"PersonalizedFL", "FedML", "Flower", "add_"} < set(means[0]["ratio"])
    assert all(r["error"] < 1e-6 for r in means)
    assert torch.get_num_threads() == threads
    ElementTree.fromstring(figure.svg(report["rows"]))
    page = tables.markdown(report)
    assert page.count("\n## ") == 5
    widths = {line.count("|") for line in page.split("## ")[1].splitlines()[2:-1]}
    assert len(widths) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--rounds", "-1"], "--rounds -1: expected at least 1"),
        (["--json", "nowhere/b.json"], "its folder does not exist"),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not pure_python(), reason="the kernels are here")
def test_without_kernels_it_says_so(capsys):
    assert main(["bench", "--quick"]) == 2
    assert "FEDCLIP_PURE_PYTHON" in capsys.readouterr().err


def test_all_sizes_are_in_the_plan():
    labels = [m.label for m in suite.measurements(False, False, 5, 2)]
    for size in (
        "B = 8",
        "B = 256",
        "D = 384",
        "D = 1024",
        "mean of 1000",
        "over 100 ",
        "each of 100 ",
        "B = 2",
    ):
        assert any(size in label for label in labels), size
    assert {m.threads for m in suite.measurements(False, False, 5, 2)} == {1, 2}


def test_the_rivals_compute_the_same_mean():
    torch.manual_seed(0)
    states = [[torch.randn(3, 4), torch.randn(4)] for _ in range(5)]
    shares = [0.1, 0.2, 0.3, 0.15, 0.25]
    want = [sum(s * x for s, x in zip(shares, key)) for key in zip(*states)]
    before = [[t.clone() for t in state] for state in states]
    ways = (
        rivals.personalizedfl_mean, rivals.add_mean, rivals.fedml_mean,
        rivals.flower_mean,
    )  # fmt: skip
    for way in ways:
        for got, tensor in zip(way(states, shares), want):
            torch.testing.assert_close(torch.as_tensor(got), tensor)
    for state, old in zip(states, before):
        assert all(torch.equal(a, b) for a, b in zip(state, old))


def test_the_rival_trains_as_the_operator_does():
    c, text = make_training(16, 8, 3)
    made, *_ = make_state(16)
    assert all(torch.equal(a, b) for a, b in zip(c.params, made))
    batches = c.perm.split(8)
    losses = ops.local_epoch(c, text, ops.Hyperparameters(8, *rivals.ADAM))
    adapter = rivals.make_adapter(16)
    first = rivals.eager_loss(adapter, c.x[batches[0]], text[c.y[batches[0]]])
    torch.testing.assert_close(losses[0], first.detach())
    rivals.eager_epoch(c.x, c.y, text, batches)()  # runs


def test_every_candidate_is_timed_in_every_round():
    calls = []
    times = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 12
    )
    assert calls[:4] == ["a", "a", "b", "b"]  # two calls each warm it up
    rounds = ["".join(calls[at : at + 2]) for at in range(4, len(calls), 2)]
    assert len(rounds) == 12
    assert set(rounds) == {"ab", "ba"}  # nobody always follows the same one
    assert all(isinstance(t, Timing) and t.minimum <= t.median for t in times.values())
