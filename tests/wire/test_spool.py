"""Rounds whose updates wait on the disk: the same bits, and little memory."""

from __future__ import annotations

import errno
import gc
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedclip_plugin import ops
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import (
    AGGREGATIONS,
    PrivacyConfig,
    RunConfig,
    ServerConfig,
    TrainConfig,
    WireConfig,
)
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.rounds import screen_round, train_clients
from fedclip_plugin.server.aggregation import aggregate, mean
from fedclip_plugin.wire import spool
from fedclip_plugin.wire.codecs import CODECS
from fedclip_plugin.wire.spool import VARIABLE, Spool
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.federation.toy import toy_features, write_toy
from tests.waiting import SECONDS

TESTS = Path(__file__).parents[2]  # where `tests` is found
CLIENTS = 75  # more than wait in memory at a time, and no multiple of a group


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def states(count: int) -> list[State]:
    generator = torch.Generator().manual_seed(count)
    sizes = {"w": (7, 13), "b": (5,), "one": ()}

    def one() -> State:
        return {k: torch.randn(s, generator=generator) for k, s in sizes.items()}

    found = [one() for _ in range(count)]
    for state in found:
        state["b"][0] = -0.0
    return found


def same(a: State, b: State) -> bool:
    """To the sign of a zero."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and torch.equal(a[k], b[k])
        and torch.equal(a[k].signbit(), b[k].signbit())
        for k in a
    )


@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 75])
@pytest.mark.parametrize("kind", ["alike", "odd", "some zero"])
def test_the_mean_of_a_spool_has_the_bits_of_the_mean(count: int, kind: str) -> None:
    plain = states(count)
    weights = torch.ones(count)
    if kind != "alike":
        weights = torch.rand(count, generator=torch.Generator().manual_seed(0)) + 0.01
    if kind == "some zero":
        weights[1:] = 0
    expected = mean(plain, weights)
    place = Spool()
    kept = [place.place(state) for state in plain]
    assert all(same(a, b) for a, b in zip(plain, kept))
    assert spool.on_disk()
    assert same(mean(kept, weights), expected)
    del kept, place
    gc.collect()
    assert not spool.on_disk()


def test_a_sum_group_by_group_is_the_reference_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops.means, "weighted_mean", ops.weighted_mean_reference)
    plain = [state["w"] for state in states(19)]
    weights = torch.linspace(0.3, 2.1, 19)
    total = torch.zeros(7, 13, dtype=torch.float64)
    shares = ops.shares_of(weights)
    for i in range(0, 19, ops.GROUP):
        part = slice(i, i + ops.GROUP)
        total += ops.group_sum(plain[part], shares[part])
    assert torch.equal(total.float(), ops.weighted_mean_reference(plain, weights))


def config(**options: object) -> RunConfig:
    usual: dict[str, object] = {
        "data": DataConfig(partition="dirichlet", clients=CLIENTS),
        "train": TrainConfig(rounds=2, lr=0.01, batch_size=4),
    }
    return RunConfig(**{**usual, **options})  # type: ignore[arg-type]


def federation(chosen: RunConfig) -> Federation:
    return build_federation(toy_features(rows=200), chosen, None, seed=0)


def last_state(chosen: RunConfig) -> State:
    *_, last = federate(federation(chosen))
    return last.state


PRIVATE = PrivacyConfig(dp_noise_multiplier=1.0, dp_clip=0.1, dp_seed="run")
RUNS = {
    **{f"codec {c}": config(wire=WireConfig(compress=c)) for c in CODECS},
    "by rows": config(server=ServerConfig(weighting="examples")),
    "gap": config(server=ServerConfig(weighting="gap")),
    "part": config(server=ServerConfig(participation=0.9)),
    "gda": config(algorithm="gda"),
    "gda int8": replace(
        config(algorithm="gda", wire=WireConfig(compress="int8")),
        train=TrainConfig(rounds=1),
    ),
    "private": config(privacy=PRIVATE),
    "linear": config(algorithm="linear"),
    **{rule: config(server=ServerConfig(aggregation=rule)) for rule in AGGREGATIONS},
    "int8 median": config(
        server=ServerConfig(aggregation="median"), wire=WireConfig(compress="int8")
    ),
}
EXACT = {name for name in RUNS if name not in AGGREGATIONS} | {"mean", "krum"}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_the_disk_ends_in_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last_state(RUNS[name])
    monkeypatch.setenv(VARIABLE, "0")
    seen: list[bool] = []
    honest = aggregate

    def watched(*args: object) -> State:
        seen.append(spool.on_disk())
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("fedclip_plugin.algorithms.base.aggregate", watched)
    found = last_state(RUNS[name])
    assert all(seen)
    assert seen
    if name in EXACT:
        assert same(found, expected)
    else:  # a rule may add up its parts in another order
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def test_a_few_coordinates_of_all_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PART_BYTES", 100)
    monkeypatch.setattr("fedclip_plugin.server.aggregation.PART_BYTES", 1000)
    for name in ("median", "codec int8", "codec int4", "gda int8"):
        monkeypatch.delenv(VARIABLE, raising=False)
        expected = last_state(RUNS[name])
        monkeypatch.setenv(VARIABLE, "0")
        found = last_state(RUNS[name])
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def test_liars_are_left_out_of_a_spooled_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fed = federation(config())
    state = fed.first
    sent = next(iter(federate(fed)))  # nothing but the first state
    assert same(sent.state, state)

    def screened() -> tuple[list[str], list[tuple[str, str]]]:
        from fedclip_plugin.federation.downlink import broadcast

        updates = train_clients(fed, state, fed.clients, 1)
        lie = {key: torch.full_like(value, 1e6) for key, value in state.items()}
        lost = {key: torch.full_like(value, torch.nan) for key, value in state.items()}
        updates[3] = replace(updates[3], state=lie)
        updates[70] = replace(updates[70], state=lost)
        names = [c.name for c in fed.clients]
        done = screen_round(fed, broadcast(fed, state), updates, names)
        return (
            [u.client for u in done.sound],
            [(q.client, q.reason) for q in done.quarantined],
        )

    expected = screened()
    assert len(expected[1]) == 2
    monkeypatch.setenv(VARIABLE, "0")
    assert screened() == expected


def test_updates_of_strangers_fit_too() -> None:
    odd = {
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "bits": torch.tensor([True, False, True]),
        "number": torch.tensor(7),
        "turned": torch.arange(6).reshape(2, 3).t(),
    }
    (kept,) = Spool().keep([ClientUpdate("a", odd, 1)])
    assert kept.client == "a"
    for key, value in odd.items():
        assert kept.state[key].dtype == value.dtype
        assert torch.equal(kept.state[key], value)


def test_the_file_has_no_name(cache: Path) -> None:
    kept = Spool().place({"w": torch.ones(3)})
    assert list((cache / "spool").iterdir()) == []
    assert float(kept["w"].sum()) == 3


def test_what_is_said_of_a_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"take .* GB, and .*spool has .*FEDCLIP_CACHE"):
        Spool(1 << 60)

    place = Spool()

    def full(data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __getattr__(self, name: str) -> object:
            return full if name == "write" else getattr(place_file, name)

    place_file = place._file
    monkeypatch.setattr(place, "_file", Full())
    with pytest.raises(RunError, match=r"cannot write .*spool: No space left"):
        place.place({"w": torch.ones(3)})
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ConfigError, match=f"{VARIABLE}={wrong}: expected MiB"):
            spool.limit()


_PEAK = """
import re, sys
from fedclip_plugin.cli import main
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status").read()
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_clients_of_a_round(tmp_path: Path) -> None:
    features = write_toy(tmp_path / "features", rows=400, dim=256)
    peaks = []
    for count in (20, 600):  # adapters of 0.5 MiB: 300 MiB in all
        argv = ["run", "--features", features, "--target", "none", "--rounds", 1]
        argv += ["--partition", "iid", "--clients", count, "--quiet"]
        argv += ["--out", tmp_path / str(count)]
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *map(str, argv)],
            env={**os.environ, VARIABLE: "64"},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        peaks.append(int(done.stdout.split()[-1]) // 1024)
    assert peaks[1] - peaks[0] < 150


def test_updates_for_a_gpu_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "0")
    like = {"w": torch.zeros(3)}
    assert isinstance(spool.spool_for(2, like, torch.device("cpu")), Spool)
    assert spool.spool_for(2, like, torch.device("cuda")) is None


_TRAINED = """
import re
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.rounds import train_clients
from tests.federation.toy import toy_features


def memory():
    status = open("/proc/self/status").read()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) // 1024


data = DataConfig(dataset="toy", targets=("none",), partition="iid", clients=1500)
config = RunConfig(data=data, train=TrainConfig(rounds=1))
fed = build_federation(toy_features(rows=3000, dim=128), config, None, 0)
train_clients(fed, fed.first, fed.clients[:10], 1)
before = memory()
updates = train_clients(fed, fed.first, fed.clients, 1)
print("more", memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its allocator's holes")
def test_what_was_put_away_leaves_no_holes_in_memory() -> None:
    """Tensors of 64 kB, 190 MiB in all: the next one does not fit into their places."""
    done = subprocess.run(
        [sys.executable, "-c", _TRAINED],
        env={**os.environ, VARIABLE: "0", "PYTHONPATH": str(TESTS)},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 80
