"""FedCLIP in the real FedML, in processes of its own: the command, and cross-silo.

The oracle is the embedded engine: same features, seed and configuration, same adapter.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.errors import ConfigError, FedClipError
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.registry.fedml.grpc import read_addresses
from tests.registry.fedml import faulty
from tests.registry.fedml.forked import launch
from tests.registry.fedml.runs import (
    FEDCLIP,
    adapter,
    close,
    embedded,
    environment,
    finish,
    free_ports,
    namespace,
    options,
    processes,
    replay,
    silo,
    silo_commands,
    write_addresses,
    write_yaml,
)
from tests.waiting import SECONDS

HEAD = "eid,rank,grpc_server_ip,grpc_server_port\n"

# ----------------------------------------------------------------- the command, alone


def refused(
    values: dict[str, Any], tmp_path: Path, *, offline: bool = False, **how: Any
):
    cf = write_yaml(tmp_path / "fedml_config.yaml", values)
    with pytest.raises(FedClipError) as caught:
        fedml_host.run(cf, offline=offline, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "offline", "message"),
    [
        (
            {"enable_tracking": True},
            True,
            "enable_tracking: true needs FedML's servers",
        ),
        ({"using_mlops": True}, True, "using_mlops: true needs FedML's servers"),
        ({"training_type": "cheetah"}, False, "training_type: cheetah: expected"),
        ({"backend": "NCCL"}, False, "backend: NCCL: expected sp or MPI"),
        ({"dataset": "x", "fedclip_features": None}, False, "x: not a known data set"),
        ({"training_type": "cross_silo", "backend": "GRPC"}, False, "its --rank"),
    ],
)
def test_a_run_that_cannot_be_is_refused(features, tmp_path, change, offline, message):
    values = options(features) | change
    assert message in refused(values, tmp_path, offline=offline)


def test_files_that_are_none(features, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        fedml_host.run(tmp_path / "none.yaml")
    for text in ("a: [", "comm_round: 3", "- 1"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            fedml_host.run(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("rank,port\n0,1\n", "under the head eid,rank"),
        (f"{HEAD}0,0,127.0.0.1,1\n", "for rank 1"),
        (f"{HEAD}0,0,127.0.0.1,1\nx,1,127.0.0.1,2\n", "eid: 'x': expected a whole"),
        (f"{HEAD}0,0,127.0.0.1,1\n1,1,127.0.0.1,x\n", "port: 'x': .* 1 to 65535"),
        (f"{HEAD}0,0,127.0.0.1,1\n1,1,127.0.0.1,70000\n", "1 to 65535"),
        (f"{HEAD}0,0,127.0.0.1,1\n1,1,,2\n", "host '': expected a host"),
        (f"{HEAD}0,0,127.0.0.1,1\n1\n", "port: '': expected a whole number"),
        (f"{HEAD}0,0,127.0.0.1,1\n1,1,no such,2\n", "host 'no such': expected a host"),
        (f"{HEAD}0,0,127.0.0.1,1\n1,1,no-such.invalid,2\n", "host 'no-such.invalid'"),
        (f"{HEAD}0,0,127.0.0.1,1\n0,1,127.0.0.1,2\n", "a second line for rank 0"),
        (f"{HEAD}0,0,127.0.0.1,1\n1,1,127.0.0.1,1\n", "another line has this address"),
    ],
)
def test_addresses_are_checked(features, tmp_path, monkeypatch, text, message):
    from fedclip_plugin.registry.fedml import grpc
    from fedclip_plugin.registry.fedml.grpc import check_silo

    monkeypatch.setattr(grpc, "KNOWN_WITHIN", 0.0)
    args = namespace(features, backend="GRPC", grpc_ipconfig_path="ip.csv")
    args.worker_num = 3
    if text is not None:
        (tmp_path / "ip.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        check_silo(args)


@pytest.mark.parametrize(("column", "told"), [("", True), (",198.51.100.9", False)])
def test_an_address_of_all_is_none_that_others_reach(column, told, tmp_path, caplog):
    first, second = free_ports(2)
    path, head = tmp_path / "ip.csv", HEAD.strip() + (",ingress_ip" if column else "")
    lines = [head, f"0,0,0.0.0.0,{first}{column}", f"1,1,127.0.0.1,{second}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    args = SimpleNamespace(rank=0, grpc_ipconfig_path=str(path))
    found = read_addresses(args)[0]
    assert found.listen == f"0.0.0.0:{first}"
    assert found.reach == f"{column.strip(',') or '0.0.0.0'}:{first}"
    assert ("a column ingress_ip says" in caplog.text) == told


def test_a_line_says_where_others_reach_a_process_not_where_it_listens(
    features, tmp_path, caplog
):
    from fedclip_plugin.registry.fedml.grpc import Address, check_silo

    first, second, third, fourth = free_ports(4)
    (tmp_path / "ip.csv").write_bytes(
        b"\xef\xbb\xbf"  # and blanks, as a spreadsheet leaves them
        + f" eid ; rank; grpc_server_ip;grpc_server_port;ingress_ip\r\n"
        f"0;0; 203.0.113.7 ;{first};\r\n1;1;::1;{second}\r\n;;;\r\n"
        f"2;2;[::1];{third};\r\n3;3;127.0.0.1; {fourth} ;198.51.100.9\r\n".encode()
    )
    args = namespace(features, backend="GRPC", grpc_ipconfig_path="ip.csv")
    args.worker_num, args.rank = 3, 0
    check_silo(args)
    assert read_addresses(args) == {
        0: Address(f"0.0.0.0:{first}", f"203.0.113.7:{first}"),
        1: Address(f"[::1]:{second}", f"[::1]:{second}"),
        2: Address(f"[::1]:{third}", f"[::1]:{third}"),
        3: Address(f"127.0.0.1:{fourth}", f"198.51.100.9:{fourth}"),
    }
    assert "203.0.113.7 is not an address of this machine" in caplog.text
    args.rank = 4
    with pytest.raises(ConfigError, match="no line for rank 4"):
        check_silo(args)


@pytest.mark.parametrize(
    ("rank", "role", "message"),
    [
        (1, "server", "--rank 1 --role server: rank 0 is the server"),
        (0, "client", "--rank 0 --role client"),
        (-1, None, "--rank -1: expected 0"),
        (7, None, "no line for rank 7"),
    ],
)
def test_ranks_are_checked_before_the_data(features, tmp_path, rank, role, message):
    path = write_addresses(tmp_path / "ip.csv", 4)
    silo = {"training_type": "cross_silo", "backend": "GRPC", "fedclip_features": "no"}
    values = options(features) | silo | {"grpc_ipconfig_path": str(path)}
    assert message in refused(values, tmp_path, rank=rank, role=role)


def test_a_yaml_file_with_a_byte_order_mark(features, tmp_path):
    cf = write_yaml(tmp_path / "fedml_config.yaml", options(features) | {"epochs": "x"})
    for encoding in ("utf-8-sig", "utf-16"):
        cf.write_text(cf.read_text("utf-8"), encoding=encoding)
        with pytest.raises(ConfigError, match="epochs: x: expected a whole number"):
            fedml_host.run(cf, offline=True)
        cf.write_text(cf.read_text(encoding), "utf-8")


@pytest.mark.parametrize("backend", ["TRPC", "MQTT_S3"])
def test_roads_that_pickle_are_taken_only_when_told_to(features, backend):
    from fedclip_plugin.registry.fedml.grpc import check_silo

    with pytest.raises(ConfigError, match=f"{backend}: its messages are pickles"):
        check_silo(namespace(features, backend=backend))
    args = namespace(features, backend=backend, fedclip_allow_pickle=True)
    check_silo(args)
    fedml_host.load(args)  # the key is known


def test_a_port_in_use_is_named(features, tmp_path):
    import socket

    from fedclip_plugin.registry.fedml.grpc import check_silo

    path = write_addresses(tmp_path / "ip.csv", 4)
    args = namespace(features, backend="GRPC", grpc_ipconfig_path=str(path))
    args.worker_num = 3
    check_silo(args)
    port = int(path.read_text().splitlines()[1].rpartition(",")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use"):
            check_silo(args)


def test_the_embedded_digits_by_one_command_offline(tmp_path, monkeypatch):
    """No user code, no network (a network namespace where one can be had)."""
    monkeypatch.chdir(tmp_path)
    values = {
        "training_type": "simulation", "backend": "sp", "dataset": "digits",
        "federated_optimizer": "FedCLIP", "comm_round": 2, "fedclip_out": "out",
        "random_seed": 0, "batch_size": 32, "learning_rate": 1e-3,
    }  # fmt: skip
    cf = write_yaml(tmp_path / "fedml_config.yaml", values)
    alone = ["unshare", "-n"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    ((code, log),) = finish(
        tmp_path, [[*alone, *FEDCLIP, "fedml", "--cf", str(cf), "--offline"]]
    )
    assert code == 0, log
    assert close(adapter(tmp_path / "out"), embedded(values).best)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["result"]["clients"]) == ["scan", "negative", "photo", "sketch"]
    assert log.count("FedCLIP round 2/2; test accuracy in %: scan ") == 1
    assert "Internet is not connected" not in log


# -------------------------------------------------------------------------- cross-silo


def clients(cf: Path, plan: dict[tuple[str, int], str], ranks: list[int]) -> Any:
    """Scripts of the user's own, whose trainers fail by (client, round)."""
    words = ("--cf", str(cf), "--role", "client")
    return [faulty.command(plan, *words, "--rank", str(rank)) for rank in ranks]


def test_a_client_that_is_started_again_joins_in(features, tmp_path):
    """Without a timeout FedML waits for it: the run ends as if nothing had been."""
    values = silo(features, tmp_path, 2, fedclip_target="photo")
    cf = write_yaml(tmp_path / "fedml_config.yaml", values)
    server, sound, _ = silo_commands(cf, 3)
    (dying,) = clients(cf, {("cartoon", 2): "dies once"}, [2])
    with processes(tmp_path, [server, sound, dying]) as started:
        assert started[2].wait(SECONDS) == 9
        started[2] = launch(dying, tmp_path, environment(tmp_path), tmp_path / "2.log")
        codes = [process.wait(SECONDS) for process in started]
    log = (tmp_path / "0.log").read_text()
    assert codes == [0, 0, 0], log
    assert close(adapter(tmp_path / "out"), embedded(values).best)
    assert "client cartoon (rank 2) is back" in log


def test_cross_silo_outlives_its_clients(features, tmp_path):
    """A wrong shape, nothing, a late answer, a death: named, and left out."""
    values = silo(features, tmp_path, 3, comm_round=7, fedclip_round_timeout=30)
    cf = write_yaml(tmp_path / "fedml_config.yaml", values)
    plan = {
        ("art", 1): "nan", ("cartoon", 2): "shape", ("photo", 3): "nothing",
        ("art", 4): "late", ("cartoon", 6): "dies",
    }  # fmt: skip
    server, *_ = silo_commands(cf, 1)
    results = finish(tmp_path, [server, *clients(cf, plan, [1, 2, 3])])
    log = results[0][1]
    assert [code for code, _ in results] == [0, 0, 9, 0], log
    voters = [
        ["cartoon", "photo"], ["art", "photo"], ["art", "cartoon"],
        ["cartoon", "photo"], ["art", "cartoon", "photo"], ["art", "photo"],
        ["art", "photo"],
    ]  # fmt: skip
    want = replay(namespace(features, **values), voters)
    assert close(adapter(tmp_path / "out"), want.now.best)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["quarantined"] for line in found] == [1, 1, 0, 0, 0, 0, 0]
    assert found[-1]["clients"] == want.now.result.clients
    for text in (
        "update of client art left out: 0.bias holds NaN or Inf",
        "update of client cartoon left out: 0.bias is (15,)",
        "client photo sent no update in round 3",
        "client art (rank 1) did not answer in 30 s",
        "late answer of client art (rank 1) to round 4 left out in round 5",
        "client cartoon (rank 2) did not answer",
        "client cartoon (rank 2) cannot be reached",
    ):
        assert text in log, text
