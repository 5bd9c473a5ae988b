"""A sweep's file: which trials it makes, and what is wrong with a bad one."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from fedclip_plugin.errors import ConfigError
from fedclip_plugin.settings.sweep import read_sweep


def labels(**tables: object) -> list[str]:
    return [trial.label for trial in read_sweep(tables)[0].trials]


def test_a_grid_has_every_combination_with_the_options_of_all() -> None:
    found, _, jobs = read_sweep(
        {
            "jobs": 3,
            "options": {"rounds": 7, "seed": [0, 1]},
            "grid": {"lr": [1e-4, 1e-3], "local_epochs": [1, 2]},
        }
    )
    assert jobs == 3
    assert [trial.label for trial in found.trials] == [
        *("lr=0.0001,local-epochs=1", "lr=0.0001,local-epochs=2"),
        *("lr=0.001,local-epochs=1", "lr=0.001,local-epochs=2"),
    ]
    last = found.trials[-1].config
    assert last is not None
    assert (last.train.lr, last.train.local_epochs, last.train.rounds) == (1e-3, 2, 7)
    assert last.seeds == (0, 1)


def test_random_draws_are_the_seed_s_and_within_bounds() -> None:
    ranges = {
        "lr": {"low": 1e-5, "high": 1e-2, "log": True},
        "local-epochs": {"low": 1, "high": 4},
        "batch-size": [16, 32],
    }
    values = {"runs": 40, "search_seed": 5, "random": ranges}
    trials = read_sweep(values)[0].trials
    assert [t.label for t in trials] == labels(**values)
    assert labels(**values) != labels(**{**values, "search_seed": 6})
    configs = [trial.config.train for trial in trials if trial.config is not None]
    assert len(configs) == 40
    assert all(1e-5 <= train.lr <= 1e-2 for train in configs)
    assert sum(train.lr < 10**-3.5 for train in configs) > 8  # not all in the last
    assert {train.local_epochs for train in configs} == {1, 2, 3, 4}
    assert {train.batch_size for train in configs} == {16, 32}


def test_flags_win_over_the_file_and_the_file_over_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDCLIP_ROUNDS", "9")
    monkeypatch.setenv("FEDCLIP_BATCH_SIZE", "8")
    values = {"options": {"rounds": 5}, "grid": {"lr": [1e-3]}}
    (trial,) = read_sweep(values)[0].trials
    assert trial.config.train.rounds == 5
    assert trial.config.train.batch_size == 8
    (trial,) = read_sweep(values, Namespace(rounds="3"))[0].trials
    assert trial.config.train.rounds == 3


def test_a_combination_that_cannot_be_is_a_trial_that_is_refused() -> None:
    found, _, _ = read_sweep({"grid": {"partition": ["domain", "iid"], "clients": [4]}})
    assert [trial.config is None for trial in found.trials] == [True, False]
    assert "--clients" in found.trials[0].refused


def test_equal_runs_run_once() -> None:
    found, _, _ = read_sweep({"grid": {"lr": [1e-3, 0.001, 2e-3]}})
    assert [trial.label for trial in found.trials] == ["lr=0.001", "lr=0.002"]
    assert "run once" in found.notes[0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"grid": {"learning-rate": [1]}}, "unknown option 'learning-rate'"),
        ({"grid": {"local-epoch": [1]}}, "did you mean local-epochs"),
        ({"gird": {"lr": [1]}}, "did you mean grid"),
        ({"grid": {"lr": []}}, "at least one"),
        ({"grid": {"lr": 0.1}}, "expected a list"),
        ({"grid": {}}, "nothing to search over"),
        ({}, "nothing to search over"),
        ({"grid": {"lr": [1e-3, -1]}}, "lr = -1: expected a number >= 0"),
        ({"grid": {"alg": ["fedclip", "fedclop"]}}, "did you mean fedclip"),
        ({"grid": {"seed": [0, 1]}}, r"put it into \[options\]"),
        ({"grid": {"local-epochs": [1], "local_epochs": [2]}}, "there twice"),
        ({"options": {"lr": 1}, "grid": {"lr": [1]}}, r"in \[options\] and in \[grid"),
        ({"random": {"lr": [1]}}, "runs = N"),
        ({"runs": 2, "grid": {"lr": [1]}}, r"for \[random\]"),
        ({"runs": 0, "random": {"lr": [1]}}, "whole number >= 1"),
        ({"runs": 2, "random": {"lr": {"low": 1}}}, "low = , high = "),
        ({"runs": 2, "random": {"lr": {"low": 2, "high": 1}}}, "low < high"),
        ({"runs": 2, "random": {"alg": {"low": 1, "high": 2}}}, "not a number"),
        ({"grid": 3}, "expected a table"),
        ({"jobs": "many", "grid": {"lr": [1]}}, "whole number >= 1"),
    ],
)
def test_a_bad_file_is_refused_in_a_line(values: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        read_sweep(values)
    assert "\n" not in str(error.value)


def test_bad_toml_and_a_flag_that_is_searched(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text("[grid]\nlr = [1e-3]\nlr = [1e-4]\n")
    with pytest.raises(ConfigError, match=r"^sweep .*sweep\.toml is not valid TOML"):
        read_sweep(file)
    file.write_text("[grid]\nlr = [1e-3]\n")
    with pytest.raises(ConfigError, match=r"--lr 1: .* searches over it in \[grid\]"):
        read_sweep(file, Namespace(lr="1"))
