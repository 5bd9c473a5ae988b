"""What all bindings share: settings, and the server's side of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.features.feature_set import load_features
from fedclip_plugin.federation.downlink import broadcast
from fedclip_plugin.federation.engine import federate, run_round
from fedclip_plugin.federation.rounds import Scores, screen_round
from fedclip_plugin.runs.directory import prepare_out
from fedclip_plugin.runs.experiment import run_experiment
from fedclip_plugin.runs.host_run import HostRun, Setup, open_setup
from fedclip_plugin.settings.options import Table
from fedclip_plugin.settings.sources import Given, load_settings
from fedclip_plugin.wire.update import ClientUpdate
from tests.federation.toy import write_toy


def make_setup(tmp_path: Path, **train: object) -> Setup:
    features = write_toy(tmp_path / "features")
    data = DataConfig(dataset="toy", features=str(features), targets=("photo",))
    return open_setup(with_values(RunConfig(data=data), {"rounds": 3, **train}))


def run_as_a_host(run: HostRun) -> dict:
    """What a host does: hand the state out, collect updates, aggregate, record."""
    run_rounds(run, run.setup.config.train.rounds)
    return run.finish()


def run_rounds(run: HostRun, last: int) -> None:
    fed = run.setup.fed
    names = [c.name for c in fed.clients]
    for number in range(run.done + 1, last + 1):
        updates = [
            fed.algorithm.local_train(run.state, c, fed.task, number)
            for c in fed.clients
        ]
        opened = run.open_round()
        run.aggregate(opened, updates[::-1], names)
        run.close_round(opened)


def close_round(run: HostRun, updates: list[ClientUpdate], scores: Scores) -> None:
    """A round of updates and accuracies that the clients sent."""
    opened = run.open_round()
    run.aggregate(opened, updates, [u.client for u in updates])
    run.close_round(opened, scores)


@pytest.mark.parametrize("method", ["none", "finetune", "mix"])
def test_a_run_in_a_host_is_the_embedded_run(tmp_path, method):
    setup = make_setup(tmp_path, lr=1e-2, personalize=method)
    ours = run_as_a_host(HostRun(setup, tmp_path / "host"))
    features = load_features(Path(setup.config.data.features))
    out = prepare_out(tmp_path / "embedded", "", resume=False)
    theirs = run_experiment(setup.config, features, _stats(), out)
    assert timeless(ours) == timeless(theirs)
    assert set(ours["metrics"]) == {"fedclip", "zero_shot"}
    assert ("personalization" in ours) == (method != "none")
    files, embedded = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "host", out)
    )
    assert files.keys() - embedded.keys() == {Path(".lock")}
    timed = {"summary.json", "metrics.jsonl", "report.html", "last.safetensors"}
    for file, content in embedded.items():
        assert file.name in timed or files[file] == content, file
    personal = {file.stem for file in files if file.parts[0] == "personal"}
    assert personal == (set() if method == "none" else {"art", "cartoon", "target"})
    lines = (tmp_path / "host" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]


def timeless(summary: dict) -> dict:
    return {key: value for key, value in summary.items() if key != "seconds"}


def _stats():
    from fedclip_plugin.features.encode import EncodeStats

    return EncodeStats(0, 0, 0.0)


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    setup = make_setup(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    summary = run_as_a_host(HostRun(setup))
    assert summary["rounds"] == 3
    assert set(summary["metrics"]) == {"fedclip", "zero_shot"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_server_without_data_keeps_what_the_clients_measured(tmp_path):
    whole = make_setup(tmp_path)
    bare = replace(whole, fed=replace(whole.fed, clients=(), target=None), target=None)
    run = HostRun(bare, tmp_path / "out")
    update = ClientUpdate("a", dict(run.state), 3)
    for test in (0.5, 0.7, 0.6):
        close_round(run, [update], {"a": {"val": test, "test": test}})
    summary = run.finish({"target": None, "clients": {"a": 0.4}, "mean": 0.4})
    assert summary["best_round"] == 2
    assert summary["result"] == {"target": None, "clients": {"a": 0.7}, "mean": 0.7}
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("train", [{"compress": "topk"}, {"optimizer_state": "keep"}])
def test_what_clients_keep_here_is_in_the_checkpoint(tmp_path, train):
    setup = make_setup(tmp_path, lr=1e-2, **train)
    run = HostRun(setup, tmp_path / "out")
    for _ in range(2):
        run_round(run)
    assert run.now.kept.keys() == {"art", "cartoon"}
    del run  # the server is gone
    run = HostRun(setup, tmp_path / "out", resume=True)
    run_round(run)
    *_, last = federate(setup.fed)
    assert all(torch.equal(value, run.state[key]) for key, value in last.state.items())


def test_a_host_scores_every_so_many_rounds(tmp_path):
    run = HostRun(make_setup(tmp_path, eval_every=2, lr=1e-2), tmp_path / "host")
    run_as_a_host(run)
    lines = (tmp_path / "host" / "metrics.jsonl").read_text().splitlines()
    assert [bool(json.loads(line)["clients"]) for line in lines] == [False, True, True]
    *_, last = federate(run.setup.fed)
    assert run.now.progress.best_round == last.progress.best_round
    assert all(torch.equal(v, last.best[k]) for k, v in run.now.best.items())


def test_rounds_that_nobody_measured_do_not_stand_for_the_best(tmp_path):
    run = HostRun(make_setup(tmp_path))
    update = ClientUpdate("art", dict(run.state), 3)
    best = []
    for scores in ({}, {}, {"art": {"val": 0.5, "test": 0.5}}, {}):
        close_round(run, [update], scores)
        best.append(run.now.progress.best_round)
    assert best == [1, 2, 3, 3]


def test_a_run_that_was_broken_off_goes_on_to_the_same_bits(tmp_path):
    setup, out = make_setup(tmp_path, lr=1e-2), tmp_path / "out"
    whole = run_as_a_host(HostRun(setup, tmp_path / "whole"))
    run_rounds(HostRun(setup, out, resume=True), 2)  # there is none yet: it begins
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "clients"')  # killed while it wrote
    again = HostRun(setup, out, resume=True)
    assert again.done == 2
    found = run_as_a_host(again)
    same = ["result", "best_round", "communication", "rounds"]
    assert {k: found[k] for k in same} == {k: whole[k] for k in same}
    name = "adapter.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
    over = HostRun(setup, out, resume=True)  # nothing is left but to tell again
    assert (over.done, over.finish()["result"]) == (3, whole["result"])


def test_without_resume_a_former_run_is_moved_aside(tmp_path):
    setup, out = make_setup(tmp_path), tmp_path / "out"
    run_as_a_host(HostRun(setup, out))
    assert HostRun(setup, out).done == 0
    assert (tmp_path / "out.previous-1" / "adapter.safetensors").is_file()
    with pytest.raises(ConfigError, match="needs the output directory"):
        HostRun(setup, None, resume=True)


def test_a_server_without_data_goes_on_with_what_was_measured(tmp_path):
    whole = make_setup(tmp_path)
    bare = replace(whole, fed=replace(whole.fed, clients=(), target=None), target=None)
    run = HostRun(bare, tmp_path / "out")
    update = ClientUpdate("a", dict(run.state), 3)
    for test in (0.5, 0.7):
        close_round(run, [update], {"a": {"val": test, "test": test}})
    other = replace(bare, features=replace(bare.features, key="who came first"))
    with pytest.raises(RunError, match="another run is writing"):
        HostRun(other, tmp_path / "out", resume=True)
    del run  # the server is gone
    run = HostRun(other, tmp_path / "out", resume=True)
    close_round(run, [update], {"a": {"val": 0.6, "test": 0.6}})
    shot = {"target": None, "clients": {"a": 0.4}, "mean": 0.4}
    assert run.finish(shot)["result"]["clients"] == {"a": 0.7}


def test_a_nan_update_is_screened_and_left_out(tmp_path, caplog):
    run = HostRun(make_setup(tmp_path))
    good = {k: v + 1 for k, v in run.state.items()}
    bad = {k: torch.full_like(v, torch.nan) for k, v in run.state.items()}
    updates = [ClientUpdate("art", good, 3), ClientUpdate("cartoon", bad, 3)]
    opened = run.open_round()
    state = run.aggregate(opened, updates, ["art", "cartoon"])
    assert "cartoon" in caplog.text
    assert [q.client for q in opened.screened.quarantined] == ["cartoon"]
    assert all(torch.equal(state[k], good[k]) for k in good)
    assert run.close_round(opened).quarantined == 1


def test_bytes_are_those_of_what_was_sent(tmp_path):
    setup = make_setup(tmp_path)
    state = setup.fed.algorithm.init(setup.fed.task)
    screened = screen_round(
        setup.fed, broadcast(setup.fed, state), [], ["art", "cartoon"]
    )
    size = sum(4 * v.numel() for v in state.values())
    assert screened.bytes_up == 0
    assert 2 * size <= screened.bytes_down <= 2 * size + 1000


def test_clients_by_place_and_by_name(tmp_path):
    setup = make_setup(tmp_path)
    assert setup.client(1) is setup.client("cartoon")
    with pytest.raises(ConfigError, match=r"client 7: this run has 2 \(art, cartoon\)"):
        setup.client(7)


def test_a_host_runs_one_target_and_one_seed(tmp_path):
    features = str(write_toy(tmp_path))
    many = RunConfig(seeds=(0, 1), data=DataConfig(features=features))
    with pytest.raises(ConfigError, match="one seed"):
        open_setup(many)
    setup = open_setup(RunConfig(data=DataConfig(features=features)))
    assert setup.target is None
    assert len(setup.fed.clients) == 3


# ---------------------------------------------------------------------------- settings


def test_host_over_variables_over_file(tmp_path):
    file = tmp_path / "fedclip.toml"
    file.write_text("seeds = [3]\n[train]\nlr = 0.5\nrounds = 7\nbatch_size = 8\n")
    environ = {
        "FEDCLIP_LR": "0.25",
        "FEDCLIP_ROUNDS": "9",
        "FEDCLIP_MODEL_CONFIG": str(tmp_path),
        "FEDCLIP_PROMPT": "'a {}' 'the {}'",
        "FEDCLIP_OUT": str(tmp_path / "out"),
        "PATH": "/bin",
    }
    config, out = load_settings({"rounds": Given(2, "comm_round: 2")}, file, environ)
    assert (config.train.lr, config.train.rounds, config.train.batch_size) == (
        0.25,
        2,
        8,
    )
    assert config.seeds == (3,)
    assert config.data.prompts == ("a {}", "the {}")
    assert config.model.config_dir == str(tmp_path)
    assert out == (tmp_path / "out", False, ())
    for word, resume in (("1", True), ("True", True), ("0", False), ("", False)):
        assert load_settings({}, file, {"FEDCLIP_RESUME": word})[1].resume is resume


def test_a_file_in_the_working_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={})[0] == with_values(RunConfig(), {})
    (tmp_path / "fedclip.toml").write_text('[train]\nweighting = "examples"\n')
    assert load_settings(environ={})[0].server.weighting == "examples"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FEDCLIP_ROUNDS": "many"}, "ROUNDS|--rounds"),
        ({"FEDCLIP_PRETRAIND": "x"}, "did you mean FEDCLIP_PRETRAINED"),
        ({"FEDCLIP_PARTITION": "odd"}, "FEDCLIP_PARTITION=odd: expected one of domain"),
        ({"FEDCLIP_RESUME": "odd"}, "FEDCLIP_RESUME=odd: expected true or false"),
    ],
)
def test_a_wrong_variable_is_named(environ, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_settings(environ=environ)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_settings(path=tmp_path / "nothing.toml", environ={})


def test_variables_are_named_after_options():
    names = set(Table().variables())
    assert {"FEDCLIP_MODEL", "FEDCLIP_MODEL_CONFIG", "FEDCLIP_PRETRAINED"} <= names
    assert not {"FEDCLIP_CONFIG", "FEDCLIP_DRY_RUN"} & names
