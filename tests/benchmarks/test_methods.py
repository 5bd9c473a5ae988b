"""The comparison of methods: what is compared, what is kept, what the page says."""

import json
from itertools import pairwise

import pytest

from benchmarks.accuracy.method_picture import LINE, apart
from benchmarks.accuracy.method_tables import TABLES, label_of, methods_of, rounds_of
from benchmarks.accuracy.methods import MethodsStudy, main
from benchmarks.command import random_features
from fedclip_plugin.algorithms import ALGORITHMS
from fedclip_plugin.errors import RunError
from fedclip_plugin.features.feature_set import save_features

DOMAINS = ("clay", "ink", "wool")


@pytest.fixture
def command(tmp_path):
    """Runs it on features of three domains; the results."""
    save_features(random_features(40, DOMAINS, dim=16), tmp_path / "features")

    def run(*words):
        options = ["--features", str(tmp_path / "features"), "--rounds", "2"]
        main([*options, "--out", str(tmp_path / "out"), *words])
        return json.loads((tmp_path / "out" / "methods.json").read_text())

    return run


def test_digits_compares_every_algorithm_of_the_package():
    compared = {row["alg"] for row in methods_of(TABLES["digits"]).values()}
    assert compared == set(ALGORITHMS.names())


def test_a_table_has_what_can_run_on_its_data():
    features = methods_of(TABLES["features"])
    assert {"zeroshot", "linear", "gda", "fedclip --preset best"} <= set(features)
    assert not {"promptfl", "fedavg"} & set(features)
    images = methods_of(TABLES["images"])
    assert "promptfl" in images
    assert "fedavg" not in images
    assert next(iter(features)) == "zeroshot"


def test_a_method_may_have_rounds_of_its_own():
    table = TABLES["features"]
    assert rounds_of({"alg": "gda"}, table, 100) == 1
    assert rounds_of({"alg": "gda", "rounds": 2}, table, 100) == 2
    assert rounds_of({"alg": "linear"}, table, 100) == 100
    few = table.fewer["fedot"]
    assert rounds_of({"alg": "fedot"}, table, 100) == few
    assert rounds_of({"alg": "fedot"}, table, few - 1) == few - 1
    assert rounds_of({"alg": "fedot", "fedot_block_size": 32}, table, 100) == 100


def test_whatever_costs_most_is_a_row_of_its_table():
    for table in TABLES.values():
        assert set(table.fewer) <= set(methods_of(table))


@pytest.mark.parametrize("count", [1, 5, 20, 60])
def test_labels_of_a_picture_do_not_overlap(count):
    crowded = apart([0.5] * count)
    assert all(b - a >= min(LINE, 1 / count) - 1e-9 for a, b in pairwise(crowded))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in crowded)
    assert sum(crowded) / count == pytest.approx(0.5)
    assert apart([0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9])


def test_a_label_is_what_is_typed():
    row = {"alg": "linear", "linear_init": "text"}
    assert label_of(row) == "linear --linear-init text"


def test_cells_become_a_row_when_all_are_there(command):
    words = ("--only", "features", "--methods", "zeroshot", "linear")
    first = command("--seeds", "0", *words)["features"]
    assert {"zeroshot", "linear", "linear --linear-init text"} <= set(first["methods"])
    assert first["cells"] == {}
    row = first["methods"]["linear"]
    assert set(row["by_target"]) == set(DOMAINS)
    assert row["rounds"] == 2
    assert row["bytes_a_run"] > 0


def test_it_goes_on_where_it_was_stopped(command, monkeypatch, capsys):
    words = ("--only", "features", "--methods", "zeroshot", "linear")
    run, ran = MethodsStudy.cell, []

    def stopped(study, name, options, target, seed):
        if options["alg"] == "linear" and target == "wool":
            raise KeyboardInterrupt
        ran.append((options["alg"], target))
        return run(study, name, options, target, seed)

    monkeypatch.setattr(MethodsStudy, "cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        command("--seeds", "0", *words)
    monkeypatch.setattr(MethodsStudy, "cell", run)
    table = command("--seeds", "0", *words)["features"]
    assert ran == [("zeroshot", d) for d in DOMAINS] + [
        ("linear", d) for d in DOMAINS[:2]
    ]
    assert "linear" in table["methods"]


def test_a_failure_is_told_and_tried_again(command, monkeypatch, capsys):
    words = ("--only", "features", "--methods", "zeroshot", "linear", "--seeds", "0")
    run = MethodsStudy.run_once

    def failing(study, name, options, target, seed):
        if options["alg"] == "linear":
            raise RunError("no more apples")
        return run(study, name, options, target, seed)

    monkeypatch.setattr(MethodsStudy, "run_once", failing)
    assert set(command(*words)["features"]["methods"]) == {"zeroshot"}
    page = capsys.readouterr().out
    assert "| `linear` | failed: no more apples |" in page
    assert "| `gda` | not reached |" in page
    monkeypatch.setattr(MethodsStudy, "run_once", run)
    assert "linear" in command(*words)["features"]["methods"]


def test_a_table_begins_anew_with_other_seeds(command):
    words = ("--only", "features", "--methods", "zeroshot", "--seeds")
    assert command(*words, "0")["features"]["methods"]["zeroshot"]["seeds"] == 1
    assert command(*words, "1", "2")["features"]["methods"]["zeroshot"]["seeds"] == 2


def test_a_transductive_method_is_marked(command, monkeypatch, capsys):
    monkeypatch.setattr(ALGORITHMS.get("linear"), "transductive", True)
    words = ("--only", "features", "--methods", "zeroshot", "linear", "--seeds", "0")
    command(*words)
    page = capsys.readouterr().out
    assert "`linear --transductive` † |" in page
    assert "`zeroshot` |" in page
