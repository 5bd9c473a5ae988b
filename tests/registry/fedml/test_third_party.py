"""An algorithm of others in the real FedML: its options are keys of the YAML file."""

from __future__ import annotations

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.registry.fedml.settings import bind
from tests.algorithms.installed import install_warm_start
from tests.registry.contract import distance
from tests.registry.fedml.runs import embedded, namespace, options
from tests.registry.fedml.test_trust import fresh_fedml, simulate

__all__ = ["fresh_fedml"]  # a fixture

OWN = {"fedclip_alg": "warm-start", "fedclip_warm_start_scale": 0.5}


def test_it_trains_with_what_the_file_says(features, monkeypatch):
    install_warm_start(monkeypatch)
    flow = simulate(namespace(features, **OWN))
    assert bind(flow.args).setup.fed.task.params.scale == 0.5
    ours = dict(flow.model.state_dict())
    assert distance(ours, embedded(options(features, **OWN)).state) <= 1e-6
    assert distance(ours, embedded(options(features)).state) > 1e-3
