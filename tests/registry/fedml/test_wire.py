"""FedML's gRPC in our hands: no pickle is loaded, and with TLS nobody else gets in.

Bytes go to a real port.  A pickle that runs leaves a file behind: none may be there.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

import grpc
from fedml.core.distributed.communication.message import Message

from fedclip_plugin.errors import ConfigError, UpdateError
from fedclip_plugin.registry.fedml.grpc import check_silo
from fedclip_plugin.registry.fedml.messages import decode_message, encode_message
from fedclip_plugin.wire.message import MARGIN, pack
from tests.registry.fedml.forked import launch
from tests.registry.fedml.port import attacks, listening, message, send, worked
from tests.registry.fedml.runs import (
    adapter,
    close,
    embedded,
    environment,
    namespace,
    options,
    processes,
    silo_commands,
    write_addresses,
    write_yaml,
)
from tests.waiting import SECONDS, wait_until

CERTIFICATES = (
    Path(__file__).resolve().parents[3] / "examples/fedml/make_certificates.sh"
)
LIMIT = 1 << 20


# ------------------------------------------------------------------------ the bytes


def read(data: bytes) -> Message:
    return decode_message(data, "message", 0, {1, 2}, LIMIT)


def test_values_and_tensors_of_any_dtype_come_back():
    """Compressed updates have other keys and dtypes than the adapter."""
    params = OrderedDict(
        [("z/q", torch.randint(-9, 9, (3, 4), dtype=torch.int8)),
         ("a", torch.arange(3).to(torch.uint16)),
         ("scale", torch.rand(2).half()),
         ("none", torch.empty(0, 5))]
    )  # fmt: skip
    sent = message(model_params=params, num_samples=7, client_idx="0", nothing=None)
    found = read(encode_message(sent))
    assert found.get_params().keys() == sent.get_params().keys()
    assert (found.get_type(), found.get_sender_id()) == (5, 1)
    assert (found.get("num_samples"), found.get("nothing")) == (7, None)
    assert isinstance(found.get("model_params"), OrderedDict)
    assert list(found.get("model_params")) == list(params)
    for key, value in params.items():
        assert torch.equal(found.get("model_params")[key], value)
        assert found.get("model_params")[key].dtype == value.dtype


def test_what_cannot_travel_is_named_at_the_sender():
    with pytest.raises(ConfigError, match="model_params of a FedML message is a list"):
        encode_message(message(model_params=[1]))
    with pytest.raises(ConfigError, match="cannot be sent"):
        encode_message(message(loss=float("nan")))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "not a message of fedclip's"),
        ({"values": {"a": [1]}, "states": {}}, "not a message of fedclip's"),
        ({"values": {}, "states": {"m": ["w"]}}, "a tensor of m is missing"),
        ({"values": {}, "states": {"m": 3}}, "its tensors have no names"),
        ({"values": {"msg_type": True, "sender": 1, "receiver": 0}}, "not a message"),
        ({"values": {"msg_type": 3, "sender": 1, "receiver": 1}, "states": {}}, "type"),
        (
            {"values": {"msg_type": 3, "sender": 9, "receiver": 0}, "states": {}},
            "rank 9 sends nothing",
        ),
    ],
)
def test_sound_bytes_with_a_wrong_meaning_are_refused(fields, reason):
    with pytest.raises(UpdateError, match=reason):
        read(pack({}, fields))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_messages_are_refused_or_are_what_they_were(data):
    good = encode_message(message(model_params={"w": torch.ones(3)}, num_samples=7))
    at = data.draw(st.integers(0, len(good)))
    to = data.draw(st.integers(at, len(good)))
    broken = good[:at] + data.draw(st.binary(max_size=12)) + good[to:]
    try:
        found = read(data.draw(st.sampled_from([broken, broken[at:]])))
    except UpdateError:
        return
    assert found.get("num_samples") == 7
    assert torch.equal(found.get("model_params")["w"], torch.ones(3))


# ------------------------------------------------------------------------- a real port


@pytest.mark.parametrize("rank", [0, 1])  # the server, and a client
def test_a_pickle_does_not_run_and_costs_only_its_message(
    features, tmp_path, rank, caplog
):
    marker = tmp_path / "ran"
    good = encode_message(message(sender=1 - rank, receiver=rank))
    with listening(features, tmp_path, rank) as (transport, observer, address):
        for name, data in attacks(marker).items():
            caplog.clear()
            with pytest.raises(grpc.RpcError) as caught:
                send(address, data)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            (line,) = [r.getMessage() for r in caplog.records]
            assert "refused" in line, name
            assert not marker.exists(), name
        for data in (b"", b"\x00" * 100, b"\xff" * 100, good[:-1], good + b"x"):
            with pytest.raises(grpc.RpcError):
                send(address, data)
        assert observer.got == []
        send(address, good)
        assert observer.here.wait(SECONDS)
        assert observer.got[0].get_sender_id() == 1 - rank
        assert transport.received == len(good)


def test_the_log_names_what_a_pickle_would_have_called(features, tmp_path, caplog):
    found = {}
    with listening(features, tmp_path, 0) as (_, _, address):
        for name, data in attacks(tmp_path / "ran").items():
            caplog.clear()
            with pytest.raises(grpc.RpcError):
                send(address, data)
            found[name] = caplog.text
    assert "'posix.system'" in found["os.system"]
    assert "'builtins.exec'" in found["builtins.exec"]
    assert "'posix.system'" in found["inside a Message of FedML's"]
    assert "'builtins.getattr', 'builtins.__import__'" in found["getattr of an import"]
    assert "start every process by `fedclip fedml`" in found["torch's own rebuild"]


def test_the_attacks_are_real(tmp_path):
    marker = tmp_path / "ran"
    for name, data in attacks(marker).items():
        if name not in ("getattr of an import", "torch's own rebuild"):
            assert worked(data)
            assert marker.exists(), name
            marker.unlink()


def test_a_huge_message_is_refused_before_it_is_taken(features, tmp_path):
    with listening(features, tmp_path, 0) as (transport, _, address):
        with pytest.raises(grpc.RpcError) as caught:
            send(address, b"x" * (transport._limit + 2 * MARGIN))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            send(address, b"x" * (transport._limit + 10))
        assert "at most" in caught.value.details()


def test_types_that_nobody_waits_for_are_left_out(features, tmp_path, caplog):
    def kind(number: int) -> bytes:
        return encode_message(Message(number, 1, 0))

    with listening(features, tmp_path, 0) as (_, observer, address):
        send(address, kind(0))  # FedML's own word that the connection is there
        send(address, kind(77))
        send(address, kind(5))
        assert observer.here.wait(SECONDS)
    assert [found.get_type() for found in observer.got] == [5]
    assert "message of rank 1: type 77 is refused" in caplog.text
    assert "message of rank 1: type 0 is refused" in caplog.text


# --------------------------------------------------------------------------------- TLS


def make_certificates(folder: Path, name: str = "tls") -> Path:
    if not (folder / "ip.csv").exists():
        write_addresses(folder / "ip.csv", 3)
    command = [str(CERTIFICATES), str(folder / "ip.csv"), str(folder / name)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / name


def tls_keys(folder: Path, rank: int) -> dict[str, str]:
    return {
        "fedclip_tls_ca": str(folder / "ca.pem"),
        "fedclip_tls_cert": str(folder / f"rank-{rank}.pem"),
        "fedclip_tls_key": str(folder / f"rank-{rank}.key"),
    }


def test_with_tls_each_rank_speaks_for_itself_alone(features, tmp_path, caplog):
    tls, foreign = make_certificates(tmp_path), make_certificates(tmp_path, "foreign")
    assert (tls / "rank-0.key").stat().st_mode & 0o077 == 0
    good = message(status="ONLINE")

    def client(folder: Path, rank: int) -> Any:
        return listening(features, tmp_path, rank, **tls_keys(folder, rank))

    with (
        client(tls, 0) as (_, observer, address),
        client(tls, 1) as (own, _, _),
        client(foreign, 2) as (stranger, _, _),
    ):
        own.send_message(good)
        assert observer.here.wait(SECONDS)
        with pytest.raises(grpc.RpcError):  # no TLS at all
            send(address, encode_message(good))
        with pytest.raises(grpc.RpcError):  # signed by another authority
            stranger.send_message(message(sender=2))
        with pytest.raises(grpc.RpcError) as caught:  # in another's name
            own.send_message(message(sender=2))
        assert "says that it is rank 2" in caught.value.details()
        assert len(observer.got) == 1


def test_keys_of_tls_are_checked(features, tmp_path):
    path = write_addresses(tmp_path / "ip.csv", 3)

    def check(**keys: str) -> None:
        args = namespace(features, backend="GRPC", grpc_ipconfig_path=str(path), **keys)
        args.worker_num = 2
        check_silo(args)

    check()
    with pytest.raises(ConfigError, match="fedclip_tls_ca is missing"):
        check(fedclip_tls_cert="x.pem")
    (tmp_path / "empty").touch()
    keys = dict.fromkeys(tls_keys(tmp_path, 0), str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="is not a PEM file"):
        check(**keys)
    with pytest.raises(ConfigError, match=r"none\.pem: No such file"):
        check(**(keys | {"fedclip_tls_ca": "none.pem"}))


# --------------------------------------------------------------------------- whole runs


def listens(port: str) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_run_goes_on_under_attack(features, tmp_path, tls, monkeypatch):
    """Pickles and noise to all three ports, for as long as the run lasts."""
    if tls:  # and a round waits on the disk
        monkeypatch.setenv("FEDCLIP_UPDATE_MEMORY", "0")
        monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    path = write_addresses(tmp_path / "ip.csv", 3)
    values = options(
        features, training_type="cross_silo", backend="GRPC", fedclip_out="out",
        grpc_ipconfig_path=str(path), fedclip_target="photo", comm_round=2,
    ) | {"client_num_in_total": 2, "client_num_per_round": 2}  # fmt: skip
    if tls:
        make_certificates(tmp_path)
        keys = tls_keys(tmp_path / "tls", 0)
        values |= {key: path.replace("-0.", "-{rank}.") for key, path in keys.items()}
    commands = silo_commands(write_yaml(tmp_path / "all.yaml", values), 3)
    ports = [line.rpartition(",")[2] for line in path.read_text().split()[1:]]
    marker, answers = tmp_path / "ran", set()
    server, *others = commands

    def attack() -> None:
        for port in ports:
            for data in attacks(marker).values():
                try:
                    send(f"127.0.0.1:{port}", data)
                except grpc.RpcError as error:
                    answers.add(error.code().name)

    with processes(tmp_path, [server]) as started:
        wait_until(lambda: listens(ports[0]) or started[0].poll() is not None, 0.1)
        attack()  # before anything can be over
        for rank, command in enumerate(others, 1):
            log, env = tmp_path / f"{rank}.log", environment(tmp_path)
            started.append(launch(command, tmp_path, env, log))
        while started[0].poll() is None:
            attack()
            time.sleep(0.2)
        codes = [process.wait(SECONDS) for process in started]
    log = (tmp_path / "0.log").read_text()
    assert codes == [0, 0, 0], log
    assert not marker.exists()
    assert close(adapter(tmp_path / "out"), embedded(values).best)
    assert (tmp_path / "cache" / "spool").is_dir() == tls
    if tls:
        assert "INVALID_ARGUMENT" not in answers
    else:
        assert "INVALID_ARGUMENT" in answers
        assert "a pickle of 'posix.system', which fedclip never loads" in log
