"""A job when sites are late, lie or die; its options and files, and leave for it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedclip_plugin.algorithms import get_algorithm
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.registry import nvflare_host
from fedclip_plugin.registry.common import messages
from fedclip_plugin.registry.common import server as common_server
from fedclip_plugin.registry.common.options import in_order, shared_text
from fedclip_plugin.registry.nvflare.job import ALLOWED
from fedclip_plugin.registry.nvflare.options import read_site_file, server_settings
from fedclip_plugin.registry.nvflare.server import Server
from fedclip_plugin.registry.nvflare.site import Site
from fedclip_plugin.registry.nvflare.worker import Aborted, Worker
from fedclip_plugin.wire import spool
from fedclip_plugin.wire.message import decode_update, encode_update, pack
from fedclip_plugin.wire.update import State
from tests.federation.toy import (
    DOMAINS,
    own_directories,
    toy_features,
    with_one_image,
    write_toy,
)
from tests.registry.contract import distance, lines_of
from tests.registry.nvflare.world import Bytes, Fault, Local, log


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def private(folder: Path, features: FeatureSet | None = None) -> dict[str, Site]:
    """A site for each domain, with nothing but its own data."""
    paths = own_directories(folder / "own", features)
    return {
        f"site-{n}": Site(f"site-{n}", {}, {"features": str(path)})
        for n, path in enumerate(paths, 1)
    }


def played(
    folder: Path,
    fault: Fault | None = None,
    features: FeatureSet | None = None,
    **options: object,
) -> tuple[Server, Local]:
    sites = Local(private(folder, features), fault)
    given = {"dataset": "toy", "rounds": 3, "out": str(folder / "out"), **options}
    values = {key.replace("_", "-"): value for key, value in given.items()}
    server = Server(values, folder / "job", sites, log)
    server.play()
    return server, sites


# ---------------------------------------------------------------------- private data


@pytest.mark.parametrize("alg", ["fedclip", "gda"])
def test_sites_with_data_of_their_own_give_the_pooled_run(
    tmp_path: Path, alg: str
) -> None:
    server, _ = played(tmp_path, alg=alg)
    world = Bytes(write_toy(tmp_path / "toy"))
    last = world.embedded(alg=alg, rounds=3)
    assert server.run is not None
    assert distance(server.run.state, last.state) == 0
    assert server.run.now.result.clients == last.result.clients
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["zero_shot"]["clients"]) == set(DOMAINS)


def test_sites_score_a_given_state(tmp_path: Path) -> None:
    played(tmp_path)
    state = str(tmp_path / "out" / "adapter.safetensors")
    played(tmp_path, rounds=1, evaluate=state, out=str(tmp_path / "job"))
    trained, job = (
        json.loads((tmp_path / name / "summary.json").read_text())
        for name in ("out", "job")
    )
    assert job["result"]["clients"] == trained["result"]["clients"]


def test_data_named_by_a_variable_are_a_sites_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = own_directories(tmp_path / "own")
    monkeypatch.setenv("FEDCLIP_FEATURES", str(path))
    config, *_ = server_settings({"dataset": "toy"}, tmp_path)
    request = messages.request({}, 0, shared_text(config), ["site-7", "berlin"])
    answer, _ = Site("berlin", {}, {}).answer(messages.INTRODUCE, request, b"")
    card = messages.card_in(answer, "berlin")
    assert (card.name, card.index, card.federation) == ("art", 1, 1)


def test_a_site_without_data_is_refused_in_one_line(tmp_path: Path) -> None:
    sites = Local({"site-1": Site("site-1", {}, {"root": str(tmp_path / "none")})})
    with pytest.raises(RunError, match=r"site site-1: .*none") as caught:
        Server({"dataset": "toy"}, tmp_path, sites, log).play()
    assert "\n" not in str(caught.value)


def test_sites_without_training_images_of_their_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the 3 clients has a training image"):
        played(tmp_path, features=toy_features(rows=1))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------- late, lying, gone


def without_examples(answer: bytes) -> bytes:
    return encode_update(replace(decode_update(answer), num_examples=0))


def test_a_round_of_sites_that_tell_of_no_example_ends_the_job(tmp_path: Path) -> None:
    def idle(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        return without_examples(answer) if task == messages.TRAIN else answer

    with pytest.raises(RunError, match="round 1: no client that answered trained on"):
        played(tmp_path, idle)
    assert not (tmp_path / "out" / "metrics.jsonl").read_text()
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_run_waits_for_sites_that_have_training_images(tmp_path: Path) -> None:
    def gone(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        alive = site == "site-1" or (task != messages.TRAIN and time == 1)
        return answer if alive else None

    line = "round 2: no site with training images has answered in 1 s"
    with pytest.raises(RunError, match=line):
        played(tmp_path, gone, with_one_image("art"), round_timeout=1)


def test_a_late_site_is_left_out_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedclip")

    def late(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        second = (site, task, time) == ("site-2", messages.TRAIN, 2)
        return None if second else answer

    _, sites = played(tmp_path, late, rounds=4)
    trained = [asked for task, asked in sites.asked if task == messages.TRAIN]
    everyone = ["site-1", "site-2", "site-3"]
    assert trained == [everyone, everyone, ["site-1", "site-3"], everyone]
    lines = lines_of(tmp_path / "out" / "metrics.jsonl")
    assert [len(line["participants"]) for line in lines] == [3, 3, 2, 3]
    assert [set(line["clients"]) for line in lines][1] == {"art", "photo"}
    assert "client cartoon left out of round 2: no answer within" in caplog.text


def test_a_site_that_never_answers_ends_no_job(tmp_path: Path) -> None:
    def silent(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        return None if site == "site-2" else answer

    server, _ = played(tmp_path, silent, start_timeout=1)
    assert set(server.run.now.result.clients) == {"art", "photo"}


def test_a_site_that_began_anew_trains_at_once(tmp_path: Path) -> None:
    def forgets(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        sites.sites[site]._party = None  # as a new process
        return answer

    sites = Local(private(tmp_path), forgets)
    options = {"dataset": "toy", "rounds": 2, "out": str(tmp_path / "out")}
    Server(options, tmp_path / "job", sites, log).play()
    lines = lines_of(tmp_path / "out" / "metrics.jsonl")
    assert [set(line["clients"]) for line in lines] == [set(DOMAINS)] * 2
    assert [line["quarantined"] for line in lines] == [0, 0]


def test_when_all_are_gone_the_job_ends_in_one_line(tmp_path: Path) -> None:
    def gone(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        return None if task == messages.TRAIN or time > 1 else answer

    with pytest.raises(RunError, match="round 2: no site has answered in 1 s"):
        played(tmp_path, gone, round_timeout=1)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04pickle", pack({}, {"val": 2.0}), pack({"a": torch.ones(1)}, {})],
)
def test_answers_of_strangers_are_left_out(tmp_path: Path, data: bytes) -> None:
    def lie(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        return data if site == "site-2" and task != messages.INTRODUCE else answer

    played(tmp_path, lie, rounds=1)
    (line,) = lines_of(tmp_path / "out" / "metrics.jsonl")
    assert line["quarantined"] == 1
    assert line["clients"].get("cartoon", {"val": None})["val"] is None


def test_a_card_that_is_none_refuses_the_site(tmp_path: Path) -> None:
    def lie(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        return pack({}, {"card": 1}) if site == "site-2" else answer

    server, _ = played(tmp_path, lie, rounds=1)
    (line,) = server.roster.refusals()
    assert "install the same version everywhere" in line


def test_what_a_site_says_is_one_line_of_text() -> None:
    line = messages.failure_in(messages.failure("a\nb\x1b[31m" + "x" * 999), "site")
    assert line.startswith("a b?[31mx")
    assert len(line) == 400


@pytest.mark.parametrize("options", [{}, {"compress": "int8"}, {"alg": "gda"}])
def test_answers_wait_on_the_disk_and_end_in_the_same_bits(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[spool.Spool | None] = []

    def open_one(count: int, like: State, device: torch.device) -> spool.Spool | None:
        opened.append(spool.spool_for(count, like, device))
        return opened[-1]

    monkeypatch.setattr(common_server, "spool_for", open_one)
    one, _ = played(tmp_path / "memory", **options)
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(spool.VARIABLE, "0")
    two, _ = played(tmp_path / "disk", **options)
    rounds = len(opened) // 2
    assert [bool(each) for each in opened] == [False] * rounds + [True] * rounds
    assert distance(one.run.state, two.run.state) == 0


def test_a_disk_that_is_full_ends_the_job_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(spool.VARIABLE, "0")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(RunError, match="the updates of a round take"):
        played(tmp_path)


# ------------------------------------------------------------- the process that trains


def introduction(folder: Path) -> tuple[Worker, bytes]:
    (path, *_) = own_directories(folder / "own")
    config, *_ = server_settings({"dataset": "toy", "local-epochs": 2000}, folder)
    worker = Worker("site-1", {}, {"features": str(path)})
    return worker, messages.request({}, 1, shared_text(config), ["site-1"])


@pytest.mark.slow
def test_the_process_dies_and_another_takes_its_place(tmp_path: Path) -> None:
    worker, request = introduction(tmp_path)
    try:
        card = messages.card_in(
            worker.answer(messages.INTRODUCE, request, lambda: False), "site-1"
        )
        assert card.name == "art"
        algorithm = get_algorithm("fedclip")
        config, *_ = server_settings({"local-epochs": 100000}, tmp_path)
        assert algorithm.communicates
        first = worker.pid
        assert first is not None

        def kill() -> bool:
            os.kill(first, signal.SIGKILL)
            return False

        shared = shared_text(config)
        state = {"0.weight": torch.zeros(16, 16), "0.bias": torch.zeros(16)}
        state |= {"2.weight": torch.zeros(16, 16), "2.bias": torch.zeros(16)}
        # the party is open: what it trains by is the first request's
        long = messages.request(state, 1, shared, ["site-1"])
        os.kill(first, signal.SIGSTOP)  # it cannot answer before
        said = worker.answer(messages.TRAIN, long, kill)
        assert messages.failure_in(said, "x") == "its training process died of signal 9"
        again = worker.answer(messages.INTRODUCE, request, lambda: False)
        assert messages.card_in(again, "site-1") == card
        assert worker.pid != first
        with pytest.raises(Aborted):
            worker.answer(messages.TRAIN, long, lambda: True)
        assert worker.pid is None
    finally:
        worker.end(at_once=True)


@pytest.mark.slow
def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    worker, request = introduction(tmp_path)
    worker.answer(messages.INTRODUCE, request, lambda: False)
    pid = worker.pid
    worker.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ------------------------------------------------------------------ options and files


def test_sites_are_in_the_order_of_their_numbers() -> None:
    names = ["site-10", "site-2", "berlin", "site-1"]
    assert in_order(names) == ["berlin", "site-1", "site-2", "site-10"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ('{"rot": "x"}', "unknown key 'rot'; did you mean"),
        ('{"lr": 1}', "unknown key 'lr'"),
        ('{"site-1": {"rounds": 3}}', "unknown key 'rounds'"),
    ],
)
def test_a_bad_site_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "fedclip.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_site_file(tmp_path, "site-1")
    assert said in str(caught.value)
    assert str(tmp_path / "fedclip.json") in str(caught.value)


def test_a_site_has_its_own_table_in_a_file_for_several(tmp_path: Path) -> None:
    values = {"device": "cpu", "site-1": {"root": "a"}, "site-2": {"root": "b"}}
    text = json.dumps(values)  # as an editor on Windows saves it
    (tmp_path / "fedclip.json").write_text(text, encoding="utf-8-sig")
    assert read_site_file(tmp_path, "site-2") == {"device": "cpu", "root": "b"}
    assert read_site_file(tmp_path / "none", "site-2") == {}


def test_results_are_in_the_jobs_directory_unless_out_is_absolute(
    tmp_path: Path,
) -> None:
    assert server_settings({}, tmp_path)[1].directory == tmp_path / "fedclip"
    assert server_settings({"out": "a"}, tmp_path)[1].directory == tmp_path / "a"
    assert server_settings({"out": "/a"}, tmp_path)[1].directory == Path("/a")
    with pytest.raises(ConfigError, match="absolute out"):
        server_settings({"out": "a", "resume": True}, tmp_path)


def test_a_job_has_nothing_of_the_run_in_the_sites_part(tmp_path: Path) -> None:
    options = {"dataset": "toy", "features": "data", "rounds": "7", "min-sites": "2"}
    nvflare_host.write_job(tmp_path / "job", options, "a-name")
    read = [
        json.loads((tmp_path / "job" / name).read_text())
        for name in (
            "meta.json",
            "app/config/config_fed_server.json",
            "app/config/config_fed_client.json",
        )
    ]
    assert (read[0]["name"], read[0]["min_clients"]) == ("a-name", 2)
    data = {"dataset": "toy", "features": str(tmp_path / "data")}
    assert read[1]["workflows"][0]["args"]["options"] == {**options, **data}
    assert read[2]["executors"][0]["executor"]["args"]["options"] == data
    for part in (read[1]["workflows"][0], read[2]["executors"][0]["executor"]):
        assert part["path"].startswith(ALLOWED)
    nvflare_host.write_job(tmp_path / "job", options)  # anew
    (tmp_path / "job" / "meta.json").unlink()
    with pytest.raises(ConfigError, match="no NVFlare job"):
        nvflare_host.write_job(tmp_path / "job", options)
    with pytest.raises(ConfigError, match="job: unknown key 'round'"):
        nvflare_host.write_job(tmp_path / "other", {"round": 1})


def test_allow_changes_every_kit_once(tmp_path: Path) -> None:
    for name, part in (("site-1", "client"), ("server", "server"), ("admin", "admin")):
        (tmp_path / "prod" / name / "startup").mkdir(parents=True)
        (tmp_path / "prod" / name / "startup" / f"fed_{part}.json").touch()
        (tmp_path / "prod" / name / "local").mkdir()
        path = tmp_path / "prod" / name / "local" / "resources.json.default"
        path.write_text(json.dumps({"format_version": 2, "class_allow_list": ["a.B"]}))
    assert len(nvflare_host.allow(tmp_path)) == 2
    for name in ("site-1", "server"):
        kit = tmp_path / "prod" / name
        values = json.loads((kit / "local" / "resources.json").read_text())
        assert values == {"format_version": 2, "class_allow_list": ["a.B", ALLOWED]}
        (said,) = nvflare_host.allow(kit)
        assert "already" in said
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(ConfigError, match="no startup kit"):
        nvflare_host.allow(tmp_path / "else")
