"""FedML over gRPC between machines: addresses, a gateway, IPv6, TLS and proxies."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.storage.tensors import read_tensors
from tests.federation.toy import DOMAINS
from tests.registry.contract import check_directory, distance, lines_of
from tests.registry.fedml.silos import Silos, codes
from tests.registry.machines import Machine, machines
from tests.waiting import SECONDS

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "fedml"
NOBODY = "http://10.77.0.99:3128"  # a proxy that is not there


@pytest.fixture
def network() -> Iterator[list[Machine]]:
    """A server's machine and three of clients."""
    try:
        context = machines(4)
        here = context.__enter__()
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        yield here
    finally:
        context.__exit__(None, None, None)


class Apart(Silos):
    """Each process on a machine of its own, with a proxy in its environment."""

    def __init__(self, folder: Path, network: list[Machine]) -> None:
        super().__init__(folder)
        self.machines = network
        self.cache = folder / "cache"

    def command(self, rank: int, cf: Path) -> list[str]:
        python, dash_m, *rest = super().command(rank, cf)
        place = self.machines[min(rank, 3)].path
        return [python, dash_m, "tests.registry.inside", place, *rest]

    def variables(self, rank: int) -> dict[str, str]:
        ways = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
        more = {"FEDCLIP_UPDATE_MEMORY": "0", "FEDCLIP_CACHE": str(self.cache)}
        return {**super().variables(rank), **dict.fromkeys(ways, NOBODY), **more}

    def write_addresses(self, text: str) -> None:
        """The same file for all."""
        for place in self.places:
            (place / "grpc_ipconfig.csv").write_bytes(text.encode("utf-8-sig"))


def test_machines_behind_a_gateway_with_ipv6_and_tls_give_the_pooled_run(
    network: list[Machine], tmp_path: Path
) -> None:
    """The server and a client are known by the gateway's addresses alone."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl")
    server, plain, six, behind = network
    silos = Apart(tmp_path, network)
    silos.write_addresses(  # as a spreadsheet saves it, with a byte order mark
        "eid;rank;grpc_server_ip;grpc_server_port;ingress_ip\r\n"
        f"0;0;0.0.0.0;8890;{server.public}\r\n"
        f"1;1;{plain.ipv4};8891;\r\n"
        f"2;2;::;8892;{six.ipv6}\r\n"
        f"3;3;{behind.public};8893;\r\n;;;;\r\n"
    )
    csv, tls = silos.places[0] / "grpc_ipconfig.csv", tmp_path / "tls"
    script = str(EXAMPLES / "make_certificates.sh")
    subprocess.run([script, str(csv), str(tls)], check=True, capture_output=True)
    silos.values |= {"fedclip_tls_ca": str(tls / "ca.pem")}
    for key, end in (("cert", "pem"), ("key", "key")):
        silos.values[f"fedclip_tls_{key}"] = str(tls / f"rank-{{rank}}.{end}")
    try:
        nobody = silos.start(7)
        assert nobody.wait(SECONDS) == 2
        said = silos.log(3).partition("fedclip: error: ")[2].splitlines()
        assert said[0].endswith("grpc_ipconfig.csv: no line for rank 7")
        before = server.traffic()
        started = [silos.start(rank) for rank in range(4)]
        assert codes(started) == [0] * 4, [silos.log(rank) for rank in range(4)]
        come, gone = (now - then for now, then in zip(server.traffic(), before))
    finally:
        silos.stop()
    last = silos.pooled()
    check_directory(silos.out, last)
    adapter, _ = read_tensors(silos.out / "adapter.safetensors")
    assert distance(adapter, last.best) == 0
    summary = json.loads((silos.out / "summary.json").read_text())
    assert set(summary["zero_shot"]["clients"]) == set(DOMAINS)
    notices = [
        "is not an address of this machine: listening on all" in silos.log(rank)
        for rank in range(4)
    ]
    assert notices == [False, False, False, True]
    assert (silos.cache / "spool").is_dir()  # the rounds were too large for no memory
    lines = lines_of(silos.out / "metrics.jsonl")
    assert come > sum(line["bytes_up"] for line in lines)
    assert gone > sum(line["bytes_down"] for line in lines)


def test_no_way_leads_out_of_the_machines(network: list[Machine]) -> None:
    for machine in network:
        routes = subprocess.run(
            machine.command(["ip", "route"]),
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert "default" not in routes
        assert len(routes.splitlines()) == 2
    ours = subprocess.run(["ip", "link"], check=True, capture_output=True, text=True)
    assert "port1" not in ours.stdout
