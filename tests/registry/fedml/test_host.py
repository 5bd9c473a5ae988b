"""FedCLIP in the real FedML, in one process: registering, sp, faults, privacy.

The oracle is the embedded engine: same features, seed and configuration, same adapter.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin import registry
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.registry.fedml.settings import bind
from fedclip_plugin.wire.update import State
from tests.registry.contract import distance
from tests.registry.fedml.runs import (
    adapter,
    close,
    embedded,
    namespace,
    options,
    replay,
)
from tests.registry.fedml.world import fresh_fedml, simulate, state_of  # noqa: F401
from tests.report.offline import assert_logged

# -------------------------------------------------------------------------- register


def test_register_twice_changes_nothing_more():
    from fedml.simulation.simulator import SimulatorSingleProcess

    assert "FedCLIP is known" in registry.register("fedml")
    before = SimulatorSingleProcess.__init__
    registry.register("fedml")
    assert SimulatorSingleProcess.__init__ is before


def test_an_unknown_version_is_refused(monkeypatch):
    import fedml

    monkeypatch.setattr(fedml, "__version__", "0.7.1")
    with pytest.raises(ConfigError, match=r"fedml 0\.7\.1 is not known.*pip install"):
        registry.register("fedml")


def test_another_signature_is_refused(monkeypatch):
    import fedml

    monkeypatch.setattr(fedml.model, "create", lambda args: None)
    with pytest.raises(ConfigError, match=r"fedml\.model\.create takes \(args\)"):
        registry.register("fedml")


def test_other_optimizers_pass_through(features):
    import fedml
    from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI

    args = namespace(features, client_optimizer="sgd", comm_round=1)
    args._fedclip = bind(args)
    dataset, _ = fedml_host.load(args)
    args.federated_optimizer = "FedAvg"
    registry.register("fedml")
    fedml.mlops.pre_setup(args)
    model = fedml_host.create_model(args)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runner = fedml.FedMLRunner(args, torch.device("cpu"), dataset, model)
    assert type(runner.runner.fl_trainer) is FedAvgAPI
    runner.run()
    assert distance(before, dict(model.state_dict())) > 0
    args.model = "mobilenet"
    assert type(fedml.model.create(args, 4)).__name__ == "MobileNet"


# ------------------------------------------------------------- simulation, one process


def test_sp_gives_the_embedded_adapter(features, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    values = options(features, fedclip_out="out", fedclip_target="photo")
    values |= {"client_num_in_total": 2, "client_num_per_round": 2}
    values |= {"fedclip_personalize": "mix"}
    last = embedded(values)
    api = simulate(namespace(features, **values))
    assert distance(state_of(api), last.state) == 0
    out = tmp_path / "out"
    assert close(adapter(out), last.best)
    lines = [json.loads(s) for s in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["clients"] == last.result.clients
    assert lines[-1]["target"] == last.result.target
    assert lines[-1]["loss"] == last.result.loss
    assert [line["bytes_up"] for line in lines] == [last.result.bytes_up] * 3
    assert (out / "report.html").is_file()
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["metrics"]) == {"fedclip", "zero_shot"}
    assert set(summary["personalization"]["clients"]) == {"art", "cartoon"}
    names = {path.stem for path in (out / "personal").iterdir()}
    assert names == {"art", "cartoon", "target"}
    text = caplog.text
    assert "FedCLIP round 3/3; test accuracy in %: art " in text
    assert "zero-shot  FedCLIP" in text


def test_clients_within_domains_are_those_of_the_embedded_engine(features):
    values = options(features, fedclip_partition="dirichlet", partition_alpha=0.3)
    values |= {"fedclip_clients_per_domain": 2, "comm_round": 1}
    values |= {"client_num_in_total": 6, "client_num_per_round": 6}
    api = simulate(namespace(features, **values))
    assert distance(state_of(api), embedded(values).state) == 0


@pytest.mark.filterwarnings("ignore")  # of wandb, about other packages
def test_every_site_scores_a_given_state_and_a_tracker_follows(
    features, tmp_path, monkeypatch
):
    """Weights & Biases comes with FedML; nothing leaves the machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    simulate(namespace(features, fedclip_out="run"))
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    state = str(tmp_path / "run" / "adapter.safetensors")
    job = {"fedclip_evaluate": state, "comm_round": 1, "fedclip_log": "wandb"}
    simulate(namespace(features, fedclip_out="job", **job))
    found = json.loads((tmp_path / "job" / "summary.json").read_text())
    for which in ("zero_shot", "result"):
        assert found[which]["clients"] == trained[which]["clients"]
    assert found["communication"]["bytes_up"] < 1000  # a number each, no adapter
    assert_logged(tmp_path / "job", b"accuracy/mean_test")


def test_the_road_without_patches(features):
    import fedml

    args = namespace(features)
    args.federated_optimizer = "FedAvg"  # FedML is told nothing of ours
    fedml.mlops.pre_setup(args)
    dataset, _ = fedml_host.load(args)
    device, model = torch.device("cpu"), fedml_host.create_model(args)
    flow = fedml_host.FedCLIPAPI(args, device, dataset, model)
    fedml.FedMLRunner(args, device, dataset, model, algorithm_flow=flow).run()
    assert distance(dict(model.state_dict()), embedded(options(features)).state) == 0


def test_sampling_is_fedmls_own(features):
    args = namespace(features, client_num_per_round=2, comm_round=4)
    api = simulate(args)
    run = api.server_aggregator.run
    drawn = []
    for number in range(4):
        names = [
            run.setup.fed.clients[i].name for i in api._client_sampling(number, 3, 2)
        ]
        drawn.append(names)
    assert len({tuple(sorted(names)) for names in drawn}) > 1
    assert distance(state_of(api), replay(args, drawn).state) == 0
    assert run.now.result.participants == drawn[-1]


def test_rounds_are_tested_as_often_as_fedml_says(features, tmp_path):
    args = namespace(features, comm_round=4, fedclip_out="out")
    args.frequency_of_the_test = 2
    simulate(args)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    tested = [bool(json.loads(line)["clients"]) for line in lines]
    assert tested == [True, False, True, True]


def test_trainer_and_aggregator_of_the_users_own_are_used(features):
    calls = []

    class Trainer(fedml_host.FedCLIPTrainer):
        def train(self, train_data, device, args):
            calls.append((args.round_idx, train_data.client.name))
            super().train(train_data, device, args)

    class Aggregator(fedml_host.FedCLIPAggregator):
        def on_after_aggregation(self, aggregated_model_or_grad):
            calls.append("aggregated")
            return super().on_after_aggregation(aggregated_model_or_grad)

    args = namespace(features, comm_round=2)
    api = simulate(args, client_trainer=Trainer, server_aggregator=Aggregator)
    names = ["art", "cartoon", "photo"]
    rounds = [[*((r, n) for n in names), "aggregated"] for r in (0, 1)]
    assert calls == [*rounds[0], *rounds[1]]
    assert distance(state_of(api), embedded(options(features, comm_round=2)).state) == 0


# ------------------------------------------------------------------------------ faults


def broken(kind: str, state: State) -> Any:
    whole = {key: value.clone() for key, value in state.items()}
    if kind == "nan":
        whole["0.bias"][1] = torch.nan
    elif kind == "inf":
        whole["2.weight"][0, 0] = torch.inf
    elif kind == "far":
        whole = {key: 1e4 * value for key, value in whole.items()}
    elif kind == "shape":
        whole["0.weight"] = whole["0.weight"][:, 1:]
    elif kind == "keys":
        del whole["2.bias"]
    elif kind == "text":
        whole["0.bias"] = "not a tensor"
    return {"nothing": None, "number": 3}.get(kind, whole)


@pytest.mark.parametrize("road", ["plain", "defended", "any distance"])
@pytest.mark.parametrize(
    "kind", ["nan", "inf", "far", "shape", "keys", "text", "nothing", "number"]
)
def test_a_bad_update_is_left_out_by_name(features, caplog, kind, road):
    args = namespace(features, comm_round=1)
    if road == "any distance":
        if kind == "far":
            pytest.skip("allowed then")
        args.fedclip_max_norm_ratio = 0
    if road == "defended":
        args.enable_defense, args.defense_type = True, "norm_diff_clipping"
        args.norm_bound = 1e6  # looks at every update, and changes none
    setup, model = bind(args).setup, fedml_host.create_model(args)
    fed, sent = setup.fed, dict(fedml_host.create_model(args).state_dict())
    server = fedml_host.FedCLIPAggregator(model, args)
    updates = [fed.algorithm.local_train(sent, c, fed.task, 1) for c in fed.clients]
    raw = [(u.num_examples, u.state) for u in updates]
    raw[1] = (raw[1][0], broken(kind, updates[1].state))
    after = server.close_round(raw)
    want = fed.algorithm.aggregate([updates[0], updates[2]], sent, fed.task)
    assert distance(after, want) <= 1e-6
    assert "client cartoon" in caplog.text
    assert server.run.now.progress.quarantined == (kind != "nothing")


def test_with_nothing_sound_the_model_stays(features, caplog):
    args = namespace(features, comm_round=1)
    args.enable_defense, args.defense_type = True, "krum"
    args.byzantine_client_num = 0
    model = fedml_host.create_model(args)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    server = fedml_host.FedCLIPAggregator(model, args)
    after = server.close_round([(5, broken("nan", before)) for _ in range(3)])
    assert distance(after, before) == 0
    assert all(f"client {name} left out" in caplog.text for name in ("art", "photo"))


def test_a_round_of_clients_that_tell_of_no_example_ends_the_run(features, caplog):
    def server(**keys):
        args = namespace(features, **keys)
        return fedml_host.FedCLIPAggregator(fedml_host.create_model(args), args)

    found = server(comm_round=2)
    raw = [(0, found.opened.state) for _ in range(3)]
    with pytest.raises(RunError, match="round 1: no client that answered trained on"):
        found.close_round(raw)
    assert found.run.done == 0
    for part in (raw[:1], [*raw[:2], (0, None)]):  # others may have examples
        found = server(comm_round=2, client_num_per_round=len(part))
        caplog.clear()
        found.close_round(part)
        assert "trained on an example: nothing is learnt" in caplog.text
        assert found.run.done == 1


def test_another_data_set_is_refused(features):
    args = namespace(features)
    trainer = fedml_host.FedCLIPTrainer(fedml_host.create_model(args), args)
    with pytest.raises(ConfigError, match=r"data of fedml_host\.load"):
        trainer.train([(torch.zeros(2, 16), torch.zeros(2))], None, args)


def test_rounds_that_train_on_nothing_are_refused(features):
    single = {"fedclip_partition": "iid", "client_num_in_total": 180}
    args = namespace(features, **single, client_num_per_round=180)
    with pytest.raises(ConfigError, match="none of the 180 clients has a training"):
        bind(args)


def test_both_roles_share_the_data_of_the_process(features):
    args = namespace(features)
    trainer = fedml_host.FedCLIPTrainer(fedml_host.create_model(args), args)
    server = fedml_host.FedCLIPAggregator(fedml_host.create_model(args), args)
    dataset, _ = fedml_host.load(namespace(features))  # as another runner would
    clients = [loader.client for loader in dataset[5].values()]
    assert trainer.binding is server.binding
    assert all(a is b for a, b in zip(clients, server.run.setup.fed.clients))


def test_cross_silo_trains_the_client_that_the_server_asked(features):
    """FedML's client takes place 0 for none given; its draw lags behind a round."""
    from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator

    from fedclip_plugin.registry.fedml.data import asked
    from fedclip_plugin.registry.fedml.silo import _Adapter

    args = namespace(features, training_type="cross_silo", client_num_per_round=2)
    (count, _, _, _, counts, trains, tests, _), _ = fedml_host.load(args)
    model = fedml_host.create_model(args)
    trainer = fedml_host.FedCLIPTrainer(model, args)
    device = torch.device("cpu")
    own = _Adapter(args, device, 2, model, count, counts, trains, tests, trainer)
    for place, name in enumerate(("art", "cartoon", "photo")):
        own.update_dataset(place)
        assert own.trainer.train_local.client.name == name
    for number in range(4):
        args.round_idx = number
        before = max(0, number - 1)  # FedMLServerManager counts up after its draw
        drawn = FedMLAggregator.data_silo_selection(None, before, 3, 2)
        assert [c.index for c in asked(bind(args), args)] == list(drawn)
