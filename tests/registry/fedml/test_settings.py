"""What FedML's YAML file means here; needs no FedML."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedclip_plugin.errors import FedClipError
from fedclip_plugin.registry.fedml.data import asked, create_model, load
from fedclip_plugin.registry.fedml.settings import bind, read_settings, selected
from fedclip_plugin.settings.sources import Output
from tests.federation.toy import write_toy


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = write_toy(tmp_path / "features")
    return SimpleNamespace(
        training_type="simulation",
        dataset="toy",
        comm_round=4,
        epochs=2,
        batch_size=8,
        random_seed=5,
        fedclip_features=str(features),
    )


def test_fedml_keys_set_what_they_name(args):
    args.learning_rate, args.weight_decay = "5e-3", 0  # YAML takes 5e-3 for a text
    config, out = read_settings(args)
    train = config.train
    assert (train.rounds, train.local_epochs, train.batch_size) == (4, 2, 8)
    assert (train.lr, train.weight_decay, config.seeds) == (5e-3, 0.0, (5,))
    assert (config.data.dataset, out) == ("toy", Output())


def test_what_is_absent_keeps_the_papers_value(args):
    train = read_settings(args)[0].train
    assert (train.lr, train.weight_decay) == (5e-5, 0.2)


def test_own_keys_over_variables_over_file(args, tmp_path, monkeypatch):
    (tmp_path / "fedclip.toml").write_text("[train]\nbeta1 = 0.5\neps = 1e-4\n")
    monkeypatch.setenv("FEDCLIP_TARGET", "art")
    monkeypatch.setenv("FEDCLIP_WEIGHTING", "examples")
    args.fedclip_target = "photo"
    args.fedclip_prompt = ["a {}", "the {} of it"]
    args.fedclip_out = "out"
    config, out = read_settings(args)
    assert config.data.targets == ("photo",)
    assert config.data.prompts == ("a {}", "the {} of it")
    assert (config.server.weighting, config.train.beta1) == ("examples", 0.5)
    assert out.directory == tmp_path / "out"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("comm_round", "many", "comm_round: many: expected a whole number >= 1"),
        ("comm_round", 2.5, "comm_round: 2.5: expected a whole number"),
        ("epochs", True, "epochs: True: expected a whole number"),
        ("learning_rate", "fast", "learning_rate: fast: expected a number"),
        ("batch_size", 1, "batch_size"),
        ("fedclip_featurs", "x", "fedclip_featurs; did you mean fedclip_features"),
        ("fedclip_rounds", 3, "FedML has a key of its own for it, comm_round"),
        ("client_num_in_total", 5, r"but this run has 3 clients \(art, cartoon"),
        ("client_num_per_round", 4, "client_num_per_round: 4: expected 1 to 3"),
        ("fedclip_target", "nowhere", "nowhere: no such domain"),
        ("fedclip_partition", "odd", "fedclip_partition: odd: expected one of"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(args, key, value, message):
    setattr(args, key, value)
    with pytest.raises(FedClipError, match=message) as caught:
        bind(args)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_never_another_one(args, tmp_path):
    del args.fedclip_features
    args.dataset, args.data_cache_dir = "no-such-data", str(tmp_path)
    with pytest.raises(FedClipError, match="no-such-data: not a known data set"):
        bind(args)


def test_a_known_data_set_is_looked_for_in_the_data_cache_dir(args, tmp_path):
    del args.fedclip_features
    args.dataset, args.data_cache_dir = "pacs", str(tmp_path)
    assert read_settings(args)[0].data.root == str(tmp_path)


def test_absent_client_numbers_are_filled_in(args):
    bind(args)
    assert (args.client_num_in_total, args.client_num_per_round) == (3, 3)


@pytest.mark.parametrize(("word", "name"), [("homo", "iid"), ("hetero", "dirichlet")])
def test_fedmls_partitions_when_asked_for(args, word, name):
    args.partition_method, args.partition_alpha = word, 0.3
    assert len(bind(args).setup.fed.clients) == 3  # the templates' key alone: domains
    del args._fedclip
    args.client_num_in_total, args.client_num_per_round = 7, 7
    args.fedclip_partition = word
    data = bind(args).setup.config.data
    assert (data.partition, data.clients) == (name, 7)
    assert data.alpha == (0.3 if name == "dirichlet" else 0.5)


def test_data_and_model_are_fedmls(args):
    (train, test, _, _, counts, trains, tests, classes), again = load(args)
    clients = bind(args).setup.fed.clients
    assert (classes, again) == (4, 4)
    assert counts == {i: len(c.train) for i, c in enumerate(clients)}
    assert train == sum(counts.values())
    assert test == sum(len(c.test) for c in clients)
    x, y = next(iter(trains[1]))
    assert x.equal(clients[1].train.x[:8])
    assert y.equal(clients[1].train.y[:8])
    assert sum(len(y) for _, y in tests[2]) == len(clients[2].test)
    state = clients and bind(args).setup.fed.algorithm.init(bind(args).setup.fed.task)
    model = create_model(args).state_dict()
    assert list(model) == list(state)
    assert all(model[key].equal(state[key]) for key in state)


def test_an_algorithm_without_an_adapter_is_refused(args):
    args.fedclip_alg = "zeroshot"
    with pytest.raises(FedClipError, match="zeroshot sends nothing"):
        create_model(args)


def test_clients_are_named_as_fedml_draws_them(args):
    import numpy as np

    args.client_num_in_total, args.client_num_per_round = 3, 2
    binding = bind(args)
    for number in range(4):
        args.round_idx = number
        np.random.seed(number)  # as in FedAvgAPI._client_sampling
        drawn = np.random.choice(range(3), 2, replace=False)
        want = [binding.setup.fed.clients[i].name for i in drawn]
        assert [c.name for c in asked(binding, args)] == want


@pytest.mark.parametrize(
    ("name", "ours"),
    [("FedCLIP", True), ("fedclip", True), ("FedAvg", False), (None, False)],
)
def test_the_optimizer_in_any_case(name, ours):
    assert selected(SimpleNamespace(federated_optimizer=name)) is ours
    assert not selected(SimpleNamespace())
