"""SecAgg+ over the real protocol of Flower: the sum is right, and nothing else is seen.

The oracle is the embedded engine: plain averaging of the same updates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from flwr.app import Context, Message, RecordDict
from flwr.common import bytes_to_ndarray

from fedclip_plugin.algorithms import get_algorithm
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.registry.flower.records import to_state
from fedclip_plugin.registry.flower.secagg import (
    LARGEST,
    SecureFedClip,
    client_app,
    quantisation,
)
from tests.federation.toy import with_one_image
from tests.registry.flower.grid import LocalGrid, embedded, grid_of, options, without

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/flower/secagg/pyproject.toml"


class Nodes:
    """The ClientApp on every node; keeps a node's state between messages, as Flower."""

    def __init__(self, broken: dict[int, str] | None = None) -> None:
        self.states: dict[int, RecordDict] = {}
        self.broken = broken or {}
        self.sent: list[tuple[int, Message]] = []

    def __call__(self, message: Message, context: Context, _: Any) -> Message | None:
        node, stage = context.node_id, self._stage(message)
        if self.broken.get(node) == stage is not None:
            return None
        context.state = self.states.setdefault(node, context.state)
        reply = client_app(message, context)
        self.sent.append((node, reply))
        return reply

    @staticmethod
    def _stage(message: Message) -> str | None:
        found = message.content.config_records.get("secaggplus_configs")
        return str(found["stage"]) if found else None


def secure_grid(config: dict[str, Any], nodes: Nodes) -> LocalGrid:
    grid = grid_of(config)
    grid.faults = dict.fromkeys(grid.nodes, nodes)
    return grid


def run(toy: Path, nodes: Nodes | None = None, **more: Any) -> tuple[Any, Any, Any]:
    config = options(toy, **more)
    strategy, nodes = SecureFedClip(config), nodes or Nodes()
    result = strategy.start(secure_grid(config, nodes))
    return strategy, nodes, to_state(result.arrays)


def distance(a: Any, b: Any) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_sum_is_plain_averaging_within_its_quantisation(toy, weighting):
    step = 2 * LARGEST / quantisation(3)
    strategy, _, found = run(toy, num_server_rounds=1, weighting=weighting)
    assert 0 < distance(found, embedded(strategy, toy).state) <= 2 * step
    strategy, _, found = run(toy, num_server_rounds=3, weighting=weighting)
    assert distance(found, embedded(strategy, toy).state) <= 100 * step  # 2.4e-5


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_a_client_without_training_images_weighs_nothing(tmp_path, weighting):
    save_features(with_one_image("art"), tmp_path / "toy")
    strategy, _, found = run(tmp_path / "toy", num_server_rounds=1, weighting=weighting)
    step = 2 * LARGEST / quantisation(3)
    assert distance(found, embedded(strategy, tmp_path / "toy").state) <= 2 * step


def test_of_clients_without_training_images_alone_nothing_is_learnt(tmp_path, caplog):
    save_features(with_one_image("art", "cartoon"), tmp_path / "toy")
    two = {"fraction_train": 0.34, "min_train_nodes": 2}
    strategy, _, found = run(tmp_path / "toy", num_server_rounds=1, **two)
    ended = strategy.host_run
    assert ended.now.result.participants == ["art", "cartoon"]
    assert distance(found, ended.fed.first) == 0
    assert ended.now.progress.quarantined == 0
    assert "nothing is learnt in it" in caplog.text


def test_a_closed_form_needs_no_more_than_the_sum(toy):
    strategy, _, secure = run(toy, num_server_rounds=1, alg="gda")
    plain, step = embedded(strategy, toy).state, 2 * LARGEST / quantisation(3)
    keys = plain.keys() - {"chosen"}
    assert distance({k: secure[k] for k in keys}, {k: plain[k] for k in keys}) < step
    assert secure["chosen"].equal(plain["chosen"])


def test_a_method_that_needs_single_updates_is_refused(toy, monkeypatch):
    monkeypatch.setattr(get_algorithm("linear").__class__, "averages", False)
    with pytest.raises(ConfigError, match="single updates, which SecAgg"):
        run(toy, num_server_rounds=1, alg="linear")


def test_nobody_but_the_client_sees_its_adapter(toy):
    """What travels looks random, and different at each client."""
    _, nodes, state = run(toy, num_server_rounds=1)
    masked = [
        [bytes_to_ndarray(data) for data in values]
        for _, reply in nodes.sent
        for record in reply.content.config_records.values()
        for values in record.values()
        if isinstance(values, list) and values and isinstance(values[0], bytes)
        if values[0].startswith(b"\x93NUMPY")
    ]
    assert len(masked) == 3
    for vectors in masked:
        plain = np.concatenate([v.ravel() for v in vectors[1:]])
        assert len(plain) == sum(value.numel() for value in state.values())
        # a mask is uniform over 32 bits
        assert 0.4 < (plain % 2**32 / 2**32).mean() < 0.6
    for _, reply in nodes.sent:
        if reply.metadata.message_type == "train":
            assert not any(reply.content.array_records.values())
    first, second = masked[0], masked[1]
    assert not np.array_equal(first[1], second[1])


def test_a_client_that_drops_out_costs_only_itself(toy):
    """Its keys were dealt out before: the others take its masks away."""
    lost = 100 - 1
    nodes = Nodes({lost: "collect_masked_vectors"})
    strategy, _, found = run(toy, nodes, num_server_rounds=1)
    want = without(strategy.config, load_features(toy), "cartoon", 1)
    assert distance(found, want) <= 1e-5


def test_too_few_clients_leave_the_model_as_it_was(toy):
    nodes = Nodes(dict.fromkeys((100, 99), "collect_masked_vectors"))
    strategy, _, found = run(toy, nodes, num_server_rounds=1)
    setup = strategy.host_run.setup
    assert distance(found, setup.fed.algorithm.init(setup.fed.task)) == 0


def test_a_client_with_nan_leaves_itself_out(toy, monkeypatch, caplog):

    from fedclip_plugin.registry.flower import client as flower_client

    honest = flower_client.train

    def train(party: Any, message: Any) -> Any:
        content = honest(party, message)
        if party.client.name == "photo":
            arrays = content["arrays"]
            broken = arrays["0.bias"].numpy() * np.nan
            arrays["0.bias"] = type(arrays["0.bias"])(broken)
        return content

    monkeypatch.setattr("tests.registry.flower.test_secagg.client_app", rebuilt(train))
    strategy, _, found = run(toy, num_server_rounds=1)
    want = without(strategy.config, load_features(toy), "photo", 1)
    assert distance(found, want) <= 1e-5
    assert "0.bias holds NaN, or values beyond 8" in caplog.text


def rebuilt(train: Any) -> Any:
    """The client app with another training function."""
    import functools

    from flwr.client.mod import secaggplus_mod

    from fedclip_plugin.registry.flower import client as flower_client
    from fedclip_plugin.registry.flower import secagg as flower_secagg

    app = flower_client.make_client_app(
        mods=[secaggplus_mod, flower_secagg.in_former_words]
    )
    app._registered_funcs.clear()
    app.query()(functools.partial(flower_client._answer, flower_client.introduce))
    app.train()(functools.partial(flower_client._answer, train))
    app.evaluate()(functools.partial(flower_client._answer, flower_client.evaluate))
    return app


@pytest.mark.parametrize(
    "more",
    [{"aggregation": "median"}, {"compress": "int8"}, {"compress_down": "int8"}],
    ids=str,
)
def test_what_needs_single_updates_is_refused(toy, more):
    with pytest.raises(ConfigError, match="SecAgg\\+ hides the single updates"):
        run(toy, **more)


def test_the_files_are_those_of_a_run(toy, tmp_path):
    strategy, _, _ = run(toy, out=str(tmp_path / "out"))
    summary = strategy.host_run.now.progress
    assert summary.bytes_up > 2 * 3 * 8 * 2 * 16 * 16  # masked: eight bytes a value
    assert (tmp_path / "out" / "report.html").is_file()


def test_sums_of_many_clients_do_not_overflow():
    for clients in (1, 2, 3, 31, 32, 1000):
        assert clients * quantisation(clients) <= 2**32
    assert quantisation(3) == 2**26


def test_the_example_names_what_there_is():
    app = tomllib.loads(EXAMPLE.read_text())["tool"]["flwr"]["app"]
    for path in app["components"].values():
        module, _, name = path.partition(":")
        assert hasattr(__import__(module, fromlist=[name]), name)
    SecureFedClip(app["config"])
