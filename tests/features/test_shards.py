"""One data set encoded by several processes, devices and machines: every image once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedclip_plugin.cli.parser import main
from fedclip_plugin.config.inputs import ModelConfig
from fedclip_plugin.errors import ConfigError, DataError
from fedclip_plugin.features import missing as missing_module
from fedclip_plugin.features import store as store_module
from fedclip_plugin.features.digests import digest_domain
from fedclip_plugin.features.encode import encode_once, encode_shard, merge_shards
from fedclip_plugin.features.shards import Shard, encoding
from fedclip_plugin.features.store import FeatureStore, _read_shard
from fedclip_plugin.ops.kernels import resolve_device, resolve_devices
from tests.clip.fake_encoder import FakeEncoder, make_dataset, make_job, refuse
from tests.waiting import SECONDS, wait_until

ROWS = 30  # in each of two domains
SPAWN = multiprocessing.get_context("spawn")


def stored(cache: Path) -> Counter[str]:
    """How often each image lies in the cache."""
    files = sorted(cache.glob("features/*/shard-*.safetensors"))
    return Counter(digest for file in files for digest in _read_shard(file)[0])


def small() -> None:
    missing_module.SAMPLE = missing_module.CPU_BATCH = 4
    store_module.SHARD_ROWS = 4


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (missing_module, "SAMPLE"),
        (missing_module, "CPU_BATCH"),
        (store_module, "SHARD_ROWS"),
    ):
        monkeypatch.setattr(module, name, 4)


def same_as_one(cache: Path, features: Any) -> None:
    dataset, _ = make_dataset(ROWS)
    alone, _ = encode_once(make_job(dataset, FakeEncoder), cache / "alone")
    assert alone.key == features.key
    for domain in alone.domains:
        assert torch.equal(alone.image[domain], features.image[domain])


@pytest.mark.parametrize("text", ["3", "0/8", "9/8", "a/8", "3/8/9", "-1/8", "1/99999"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--shard .*: expected K/N"):
        Shard.parse(text)


def encode_part(
    cache: str, number: int, count: int, encoder: Callable[[], FakeEncoder]
) -> None:
    small()
    dataset, _ = make_dataset(ROWS)
    job = make_job(dataset, encoder)
    encode_shard(job, Path(cache), Shard(number, count))


class Stuck(FakeEncoder):
    """It never comes back from its fourth batch."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.seen >= 3 * 4:
            time.sleep(SECONDS)
        return super().encode_images(pixels)


def test_shards_at_once_encode_every_image_once_and_merge(tmp_path: Path) -> None:
    processes = [
        SPAWN.Process(target=encode_part, args=(str(tmp_path), k, 3, FakeEncoder))
        for k in (1, 2, 3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0
    found = stored(tmp_path)
    assert len(found) == 2 * ROWS
    assert set(found.values()) == {1}
    dataset, _ = make_dataset(ROWS)
    features, stats = merge_shards(make_job(dataset, FakeEncoder), tmp_path, 3)
    assert stats.encoded == 0
    same_as_one(tmp_path, features)
    with pytest.raises(ConfigError, match="expected K/N"):
        Shard.parse("4/3")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    dataset, _ = make_dataset(ROWS)
    encode_shard(make_job(dataset, FakeEncoder), tmp_path, Shard(1, 2))
    job = make_job(dataset, refuse)
    with pytest.raises(ConfigError) as caught:
        merge_shards(job, tmp_path, 2)
    message = str(caught.value)
    assert "2/2 (" in message
    assert "1/2" not in message
    assert "fedclip features --shard 2/2" in message


def test_a_killed_shard_goes_on_where_it_was(tmp_path: Path) -> None:
    process = SPAWN.Process(target=encode_part, args=(str(tmp_path), 1, 2, Stuck))
    process.start()
    wait_until(lambda: len(stored(tmp_path)) >= 8 or not process.is_alive(), 0.01)
    assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = stored(tmp_path)
    dataset, _ = make_dataset(ROWS)
    job = make_job(dataset, FakeEncoder)
    with pytest.raises(ConfigError, match=r"1/2 .*2/2"):
        merge_shards(job, tmp_path, 2)
    stats = [encode_shard(job, tmp_path, Shard(k, 2)) for k in (1, 2)]
    assert sum(s.encoded for s in stats) == 2 * ROWS - len(before)
    assert sum(s.images for s in stats) == 2 * ROWS
    assert set(stored(tmp_path).values()) == {1}
    same_as_one(tmp_path, merge_shards(job, tmp_path, 2)[0])


def test_one_process_a_shard_and_one_number_of_shards(tmp_path: Path) -> None:
    dataset, _ = make_dataset(ROWS)
    job = make_job(dataset, refuse)
    store = FeatureStore(tmp_path / "features" / job.encoder_key[:32])
    with encoding(store, Shard(1, 2)):
        with pytest.raises(ConfigError, match="another process encodes this shard"):
            encode_shard(job, tmp_path, Shard(1, 2))
        with pytest.raises(ConfigError, match=r"encodes shard 1/2 .* the same number"):
            encode_shard(job, tmp_path, Shard(1, 3))


def run_all(cache: str, queue: Any) -> None:
    small()
    dataset, _ = make_dataset(ROWS)
    _, stats = encode_once(make_job(dataset, FakeEncoder), Path(cache))
    queue.put(stats.encoded)


def test_who_encodes_all_waits_for_the_shards(tmp_path: Path) -> None:
    queue = SPAWN.Queue()
    slow = partial(FakeEncoder, 0.01)
    part = SPAWN.Process(target=encode_part, args=(str(tmp_path), 1, 2, slow))
    part.start()
    wait_until(lambda: bool(stored(tmp_path)) or not part.is_alive(), 0.01)
    assert stored(tmp_path)
    whole = SPAWN.Process(target=run_all, args=(str(tmp_path), queue))
    whole.start()
    encoded = queue.get(timeout=SECONDS)
    part.join()
    whole.join()
    assert encoded == 2 * ROWS - len(Shard(1, 2).of(stored(tmp_path)))
    assert set(stored(tmp_path).values()) == {1}


def test_an_unreadable_image_is_left_out_by_its_shard(tmp_path: Path) -> None:
    bad = ["b/c1/0019.png"]
    dataset, _ = make_dataset(ROWS, bad=bad)
    strict = make_job(dataset, FakeEncoder)
    digest = digest_domain(dataset.domains[1], tmp_path)[19]
    shard = next(s for s in (Shard(1, 2), Shard(2, 2)) if s.of([digest]))
    with pytest.raises(DataError, match=r"0019\.png"):
        encode_shard(strict, tmp_path, shard)
    with pytest.raises(ConfigError, match="--merge 2: not encoded"):
        merge_shards(strict, tmp_path, 2)
    job = make_job(dataset, FakeEncoder, on_bad_image="skip")
    for k in (1, 2):
        encode_shard(job, tmp_path, Shard(k, 2))
    features, _ = merge_shards(job, tmp_path, 2)
    assert features.skipped == tuple(bad)


class OtherPrecision(FakeEncoder):
    def resolve_precision(self, pixels: torch.Tensor) -> str:
        self.precision = "bf16"
        return self.precision


def test_machines_that_encode_otherwise_are_told(tmp_path: Path) -> None:
    dataset, _ = make_dataset(ROWS)
    encode_shard(make_job(dataset, FakeEncoder), tmp_path, Shard(1, 2))
    with pytest.raises(ConfigError, match=r"in bf16, and another .* fp32: set --prec"):
        encode_shard(make_job(dataset, OtherPrecision), tmp_path, Shard(2, 2))


# ---------------------------------------------------------------------- several devices


@pytest.mark.parametrize("more", [1, 3])
def test_every_device_takes_its_share(tmp_path: Path, more: int) -> None:
    loaded: list[FakeEncoder] = []

    def load() -> FakeEncoder:
        loaded.append(FakeEncoder(0.001))
        return loaded[-1]

    dataset, _ = make_dataset(ROWS)
    told: list[tuple[int, int]] = []
    job = make_job(dataset, load, more_encoders=(load,) * more)
    features, stats = encode_once(
        job, tmp_path, lambda _, done, total: told.append((done, total))
    )
    assert stats.encoded == 2 * ROWS
    assert len(loaded) == 1 + more
    assert all(encoder.seen >= ROWS // (1 + more) for encoder in loaded)
    assert told[-1] == (2 * ROWS, 2 * ROWS)
    assert set(stored(tmp_path).values()) == {1}
    same_as_one(tmp_path, features)


GONE = threading.Event()


class Broken(FakeEncoder):
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        GONE.set()
        raise DataError("this device is gone")


class Later(FakeEncoder):
    """It has done no more than a batch when the other device is gone."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not self.seen or GONE.wait(SECONDS)
        return super().encode_images(pixels)


def test_a_device_that_fails_ends_it_and_nothing_encoded_is_lost(
    tmp_path: Path,
) -> None:
    dataset, _ = make_dataset(ROWS)
    GONE.clear()
    job = make_job(dataset, lambda: Later(0.01), more_encoders=(Broken,))
    with pytest.raises(DataError, match="this device is gone"):
        encode_once(job, tmp_path)
    left = len(stored(tmp_path))
    assert left < ROWS
    features, stats = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    assert stats.encoded == 2 * ROWS - left
    same_as_one(tmp_path, features)


def test_devices_that_encode_otherwise_are_told(tmp_path: Path) -> None:
    dataset, _ = make_dataset(ROWS)
    job = make_job(dataset, FakeEncoder, more_encoders=(OtherPrecision,))
    with pytest.raises(ConfigError, match=r"encodes in \w+ and another .*--precision"):
        encode_once(job, tmp_path)


def test_what_a_device_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("auto", "cpu", "cuda:3", "cuda:0,cuda:1", "cpu, cpu"):
        assert ModelConfig(device=name).device == name
    for name in ("auto,cpu", "gpu", "cuda:0,", "cuda:0;cuda:1"):
        with pytest.raises(ConfigError, match="device"):
            ModelConfig(device=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    two = [torch.device("cuda", i) for i in (0, 1)]
    assert resolve_devices("auto") == two
    assert resolve_devices("cuda:0,cuda:1") == two
    assert resolve_device("cuda:1,cuda:0") == two[1]
    assert resolve_devices("cuda:1") == two[1:]
    with pytest.raises(ConfigError, match="devices of one type"):
        resolve_device("cuda:0,cpu")
    with pytest.raises(ConfigError, match="sees 2 CUDA"):
        resolve_devices("cuda:0,cuda:2")


# -------------------------------------------------------------------------- the command


def test_the_command_encodes_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    usual = ["features", "--dataset", "digits", "--device", "cpu,cpu"]
    to = ["--to", str(tmp_path / "to")]
    for words, code in (
        ([*usual], "--to DIR is missing"),
        ([*usual, "--shard", "1/2", *to], "leave out --to"),
        ([*usual, "--merge", "0", *to], "--merge 0: expected 1 to"),
        ([*usual, "--merge", "2", *to], "not encoded: 1/2"),
    ):
        assert main(words) == 2
        assert code in capsys.readouterr().err
    for shard in ("1/2", "2/2"):
        assert main([*usual, "--shard", shard]) == 0
    assert main([*usual, "--merge", "2", *to]) == 0
    assert (tmp_path / "to").is_dir()
    printed = "".join(capsys.readouterr())
    assert "shard 1/2: " in printed
    assert ", 0 encoded now" in printed.partition("shard 2/2")[2].partition("\n")[2]
    monkeypatch.setenv("FEDCLIP_ALPHA", "0.3")
    for words in (["--shard", "1/2"], ["--merge", "2", *to]):
        assert main([*usual, *words, "--quiet"]) == 0
        assert capsys.readouterr().err.count("note: FEDCLIP_ALPHA=0.3 has no") == 1
