"""How nodes with data of their own are split and cut, and what follows a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from fedclip_plugin.errors import RunError
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.unseen import base_to_novel
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from tests.federation.toy import DOMAINS, name_images, own_directories, write_split
from tests.registry.flower.grid import LocalGrid, equal, grid_of, options
from tests.registry.flower.world import Messages


def nodes_of(paths: list[Path], **of_domain: str) -> dict[int, dict[str, Any]]:
    """A node for each directory; ``of_domain`` are keys with {} for the domain."""
    return {
        50 - i: {
            "partition-id": i,
            "features": str(path),
            **{key: value.format(path.name) for key, value in of_domain.items()},
        }
        for i, path in enumerate(paths)
    }


def test_a_published_split_serves_nodes_with_data_of_their_own(
    toy: Path, tmp_path: Path
) -> None:
    """One file for all, of which each finds its own images; or each its own file."""
    named = name_images(toy)
    paths = own_directories(tmp_path / "own", named)
    whole = write_split(tmp_path / "whole.json", named)
    *_, last = federate(Messages(toy).setup(split=whole).fed)
    shared = options(None, split=whole)
    result = flower_host.FedClip(shared).start(LocalGrid(nodes_of(paths), shared))
    assert equal(to_state(result.arrays), last.state)
    for domain in DOMAINS:
        kept = json.loads(Path(whole).read_text())
        mine = {k: [e for e in v if e[0].startswith(domain)] for k, v in kept.items()}
        (tmp_path / f"{domain}.json").write_text(json.dumps(mine))
    each = nodes_of(paths, split=f"{tmp_path}/{{}}.json")
    result = flower_host.FedClip(options(None)).start(LocalGrid(each))
    assert equal(to_state(result.arrays), last.state)


def test_clients_inside_a_nodes_own_domain_are_named(toy: Path, tmp_path: Path) -> None:
    paths = own_directories(tmp_path / "own")
    cut = options(None, partition="iid", clients_per_domain=2, num_server_rounds=1)
    strategy = flower_host.FedClip(cut)
    named = nodes_of(paths, **{"client-name": "{}-1"})
    result = strategy.start(LocalGrid(named, cut))
    assert result.train_metrics_clientapp[1]["clients"] == 3
    cards = strategy.nodes.roster.cards.values()
    assert [card.name for card in cards] == [f"{domain}-1" for domain in DOMAINS]
    with pytest.raises(RunError, match="set client-name to the one that it is") as told:
        flower_host.FedClip(cut).start(LocalGrid(nodes_of(paths), cut))
    assert "\n" not in str(told.value)


def test_novel_classes_are_measured_by_nodes_with_data_of_their_own(
    toy: Path, tmp_path: Path
) -> None:
    run_config = options(None, classes="base", out=str(tmp_path / "out"))
    grid = LocalGrid(nodes_of(own_directories(tmp_path / "own")), run_config)
    flower_host.FedClip(run_config).start(grid)
    setup = Messages(toy).setup(classes="base")
    *_, last = federate(setup.fed)
    want = base_to_novel(setup.fed, setup.features, None, last.best)
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    for which in ("zero_shot", "result"):
        assert found["base_to_novel"][which] == pytest.approx(want[which])
        assert want[which]["novel"]


def test_tensorboard_follows_a_server(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_config = options(toy, out=str(tmp_path / "out"), log="tensorboard")
    flower_host.FedClip(run_config).start(grid_of(run_config))
    events = EventAccumulator(str(tmp_path / "out")).Reload()
    steps = events.Scalars("accuracy/mean_test")
    assert [step.step for step in steps] == [1, 2]
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    tests = [json.loads(line)["mean_test"] for line in lines]
    assert [step.value for step in steps] == pytest.approx(tests)
