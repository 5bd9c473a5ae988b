"""Cross-silo where each client has data that only it has, and the server none.

The oracle is the embedded engine over all of it in one feature directory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.errors import ConfigError
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.registry.common.roster import setup_of_server
from fedclip_plugin.registry.fedml import private
from fedclip_plugin.storage.tensors import read_tensors
from tests.federation.toy import DOMAINS, own_directories, toy_features
from tests.registry.contract import check_directory, distance, lines_of
from tests.registry.fedml.forked import kill
from tests.registry.fedml.runs import options, write_addresses
from tests.registry.fedml.silos import SHARED, Silos, codes
from tests.waiting import SECONDS


@pytest.fixture
def silos(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    found = Silos(tmp_path, **getattr(request, "param", {}))
    yield found
    found.stop()


@pytest.mark.slow
def test_the_adapter_is_that_of_the_pooled_folder(silos: Silos) -> None:
    started = [silos.start(rank) for rank in range(4)]
    assert codes(started) == [0, 0, 0, 0], [silos.log(rank) for rank in range(4)]
    last = silos.pooled()
    check_directory(silos.out, last)
    adapter, _ = read_tensors(silos.out / "adapter.safetensors")
    assert distance(adapter, last.best) == 0
    summary = json.loads((silos.out / "summary.json").read_text())
    assert set(summary["zero_shot"]["clients"]) == set(DOMAINS)
    assert "accuracy in %" in silos.log(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "silos",
    [{"fedclip_round_timeout": 600, "comm_round": 5000, "epochs": 1}],
    indirect=True,
)
def test_a_stranger_is_refused_a_late_one_joins_and_a_killed_server_goes_on(
    silos: Silos,
) -> None:
    stranger = load_features(silos.data[3] or Path())  # other classes
    own = silos.data[3] or Path()
    shutil.move(own, own.parent / "aside")
    classes = tuple(f"other {name}" for name in stranger.classes)
    save_features(replace(stranger, classes=classes), own)
    server = silos.start(0)
    one, two, other = (silos.start(rank) for rank in (1, 2, 3))
    assert other.wait(SECONDS) == 2
    refused = silos.log(3).partition("fedclip: error: ")[2].splitlines()[0]
    assert "the server refuses this client: its classes are other" in refused
    assert "refused: its classes are other" in silos.log(0)
    silos.rounds(2)
    shutil.rmtree(own)
    shutil.move(own.parent / "aside", own)
    late = silos.start(3, log="late.txt")
    silos.rounds(2, clients=3)
    kill(server)
    done = len(lines_of(silos.out / "metrics.jsonl"))
    silos.values["comm_round"] = done + 3
    again = silos.start(0, "--resume", log="again.txt")
    assert codes([again, one, two, late]) == [0, 0, 0, 0], silos.log(0, "again.txt")
    lines = lines_of(silos.out / "metrics.jsonl")
    assert [line["round"] for line in lines] == list(range(1, done + 4))
    assert len(lines[0]["participants"]) == 2
    assert set(lines[-1]["participants"]) == set(DOMAINS)


def arguments(features: Path | None, rank: int, folder: Path, **more: Any) -> Any:
    """FedML's ``args`` of one process."""
    values = options(features or Path(), **{**SHARED, **more})
    values["grpc_ipconfig_path"] = str(write_addresses(folder / "ip.csv", 4))
    if features is None:
        del values["fedclip_features"]
    return SimpleNamespace(rank=rank, **values)


def test_whose_the_data_are_is_seen(tmp_path: Path, features: Path) -> None:
    alone = own_directories(tmp_path / "own")[0]
    assert private.is_private(arguments(None, 0, tmp_path))
    assert private.is_private(arguments(alone, 1, tmp_path))
    assert not private.is_private(arguments(features, 0, tmp_path))
    assert not private.is_private(arguments(features, 1, tmp_path))
    said = {"fedclip_private_data": True}
    assert private.is_private(arguments(features, 0, tmp_path, **said))
    few = own_directories(tmp_path / "few", toy_features(rows=1))[0]  # none to train on
    assert private.is_private(arguments(few, 1, tmp_path))
    named = arguments(features, 1, tmp_path, fedclip_client_name="art")
    assert private.is_private(named)


def read(args: Any) -> Any:
    """What a process reads of its file."""
    assert private.is_private(args)
    return (private.site_options if args.rank else private.server_settings)(args)


@pytest.mark.parametrize(
    ("rank", "more", "told"),
    [
        (0, {"enable_defense": True}, "enable_defense"),
        (0, {"client_num_in_total": 5}, "has lines for 3 clients"),
        (0, {"fedclip_partition": "iid"}, "leave it out"),
        (0, {"backend": "MPI"}, "works in cross_silo, over GRPC"),
        (1, {}, "rank 1 names no data of its own"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(
    rank: int, more: Mapping[str, Any], told: str, tmp_path: Path
) -> None:
    args = arguments(None, rank, tmp_path, fedclip_private_data=True, **more)
    with pytest.raises(ConfigError, match=told) as caught:
        read(args)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("FEDCLIP_FEATURES" in os.environ, reason="would be found")
def test_the_servers_own_domain_is_held_out(tmp_path: Path) -> None:
    """It is scored at the server, and clients know nothing of it."""
    alone = own_directories(tmp_path / "own")[0]
    args = arguments(
        alone, 0, tmp_path, fedclip_private_data=True, fedclip_target=DOMAINS[0]
    )
    assert private.is_private(args)
    config, *_ = private.server_settings(args)
    setup = setup_of_server(config, alone=True)
    assert setup.target == DOMAINS[0]
    assert setup.fed.clients == ()
    assert setup.fed.target is not None
    assert len(setup.fed.target) > 0
