from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.data.dataset import ImageDataset, ImageDomain
from fedclip_plugin.data.images import decode_image
from fedclip_plugin.errors import DataError, RunError, WeightsError
from fedclip_plugin.features import missing as cache_module
from fedclip_plugin.features import store as store_module
from fedclip_plugin.features.digests import digest_domain
from fedclip_plugin.features.encode import encode_once
from tests.clip.fake_encoder import FakeEncoder, make_dataset, make_job, png, refuse
from tests.waiting import SECONDS, wait_until


def small_batches(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(cache_module, "SAMPLE", size)
    monkeypatch.setattr(cache_module, "CPU_BATCH", size)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("features/*/shard-*.safetensors"))


def test_second_run_encodes_nothing_and_loads_no_model(tmp_path):
    dataset, _ = make_dataset()
    first, stats = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    again, second = encode_once(make_job(dataset, refuse), tmp_path)
    assert (stats.encoded, second.encoded, second.images) == (40, 0, 40)
    assert stats.precision == second.precision == "fp32"
    assert first.key == again.key
    assert torch.equal(first.text, again.text)
    assert all(torch.equal(first.image[d], again.image[d]) for d in first.domains)


def test_features_are_those_of_each_image_in_order(tmp_path):
    dataset, _ = make_dataset()
    features, _ = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    encoder = FakeEncoder()
    for domain in dataset.domains:
        expected = torch.stack(
            [
                encoder.preprocess(decode_image(domain.read(i), "x")).reshape(-1)
                for i in range(len(domain.files))
            ]
        )
        assert torch.equal(features.image[domain.name], expected)
        assert features.label[domain.name].tolist() == domain.labels.tolist()
    assert features.logit_scale == 42.0


def test_a_new_image_costs_one_encoding(tmp_path):
    encode_once(make_job(make_dataset(20)[0], FakeEncoder), tmp_path)
    _, stats = encode_once(make_job(make_dataset(21)[0], FakeEncoder), tmp_path)
    assert stats.encoded == 2  # one in each domain


def test_new_prompts_encode_no_image(tmp_path):
    dataset, _ = make_dataset()
    first, _ = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    other = make_job(dataset, FakeEncoder, prompts=("{} here", "this is {}"))
    features, stats = encode_once(other, tmp_path)
    assert stats.encoded == 0
    encoder = FakeEncoder()
    parts = [
        F.normalize(encoder.encode_text([t.format(c) for c in ("c0", "c1")]), dim=1)
        for t in ("{} here", "this is {}")
    ]
    assert torch.allclose(features.text, (parts[0] + parts[1]) / 2)
    assert features.prompt == ("{} here", "this is {}")
    assert features.key != first.key


def test_other_encoder_shares_nothing(tmp_path):
    dataset, _ = make_dataset()
    encode_once(make_job(dataset, FakeEncoder), tmp_path)
    job = make_job(dataset, FakeEncoder, encoder_key="other" * 10)
    assert encode_once(job, tmp_path)[1].encoded == 40


def test_damaged_shard_is_told_and_only_it_is_encoded_again(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(store_module, "SHARD_ROWS", 8)
    small_batches(monkeypatch, 8)
    dataset, _ = make_dataset()
    good, _ = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    files = shards(tmp_path)
    assert len(files) == 5
    files[1].write_bytes(files[1].read_bytes()[:-9])
    data = bytearray(files[3].read_bytes())
    data[-1] ^= 4
    files[3].write_bytes(data)
    features, stats = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    assert stats.encoded == 16
    assert files[1].name in caplog.text
    assert "encoded again" in caplog.text
    assert all(torch.equal(good.image[d], features.image[d]) for d in good.domains)


def test_damaged_text_is_encoded_again(tmp_path):
    dataset, _ = make_dataset()
    good, _ = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    (text,) = tmp_path.glob("features/*/text-*.safetensors")
    text.write_bytes(b"torn")
    again, stats = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    assert stats.encoded == 0
    assert torch.equal(good.text, again.text)


def test_bad_image_fails_with_its_name_and_keeps_what_was_encoded(
    tmp_path, monkeypatch
):
    small_batches(monkeypatch, 4)
    dataset, _ = make_dataset(bad=["b/c1/0019.png"])
    with pytest.raises(DataError, match=r"b/c1/0019\.png"):
        encode_once(make_job(dataset, FakeEncoder), tmp_path)
    repaired, _ = make_dataset()
    _, stats = encode_once(make_job(repaired, FakeEncoder), tmp_path)
    assert stats.encoded <= 8


def test_bad_image_can_be_skipped_and_is_listed(tmp_path):
    dataset, _ = make_dataset(bad=["a/c1/0003.png"])
    job = make_job(dataset, FakeEncoder, on_bad_image="skip")
    features, stats = encode_once(job, tmp_path)
    assert features.skipped == ("a/c1/0003.png",)
    assert stats.images == 39
    assert len(features.label["a"]) == len(features.image["a"]) == 19
    strict = make_job(dataset, FakeEncoder)  # the cache does not hide it later
    with pytest.raises(DataError, match=r"0003\.png"):
        encode_once(strict, tmp_path)


def test_domain_without_a_readable_image_is_an_error(tmp_path):
    names = [f"a/c{i % 2}/{i:04}.png" for i in range(3)]
    dataset, _ = make_dataset(rows=3, bad=names)
    with pytest.raises(DataError, match="domain 'a' has no readable image"):
        encode_once(make_job(dataset, FakeEncoder, on_bad_image="skip"), tmp_path)


def test_digests_are_remembered_by_stamp(tmp_path):
    reads: list[int] = []
    stamps = ["1", "2", "3"]

    def read(i: int) -> bytes:
        reads.append(i)
        return png(i)

    domain = ImageDomain(
        "d", ("x", "y", "z"), np.zeros(3, np.int64), read, stamps.__getitem__
    )
    first = digest_domain(domain, tmp_path)
    assert digest_domain(domain, tmp_path) == first
    assert reads == [0, 1, 2]
    stamps[1] = "changed"
    assert digest_domain(domain, tmp_path) == first
    assert reads == [0, 1, 2, 1]


def test_files_that_are_not_there_are_skipped_by_their_stamp_too(tmp_path):
    def gone(i: int) -> str:
        raise DataError("cannot read image")

    def read(i: int) -> bytes:
        return gone(i).encode() if i == 0 else png(i)

    def stat(i: int) -> str:
        return gone(i) if i == 0 else "1"

    domain = ImageDomain("d", ("x", "y"), np.zeros(2, np.int64), read, stat)
    first = digest_domain(domain, tmp_path, skip=True)
    assert first[0] == ""
    assert first[1]
    assert digest_domain(domain, tmp_path, skip=True) == first
    with pytest.raises(DataError):
        digest_domain(domain, tmp_path)


class StuckEncoder(FakeEncoder):
    """It never comes back from its seventh batch."""

    calls = 0

    def encode_images(self, pixels):
        self.calls += 1
        while self.calls > 6:
            time.sleep(1)
        return super().encode_images(pixels)


def encode_until_stuck(cache: str) -> None:
    store_module.SHARD_ROWS = 4
    cache_module.SAMPLE = cache_module.CPU_BATCH = 4
    dataset, _ = make_dataset(rows=40)
    encode_once(make_job(dataset, StuckEncoder), Path(cache))


def test_killed_encoder_goes_on_where_it_was(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=encode_until_stuck, args=(str(tmp_path),))
    process.start()
    wait_until(lambda: len(shards(tmp_path)) >= 5 or not process.is_alive(), 0.01)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    dataset, _ = make_dataset(rows=40)
    done = 4 * len(shards(tmp_path))
    features, stats = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    assert 20 <= done < 80
    assert stats.encoded == 80 - done
    fresh, _ = encode_once(make_job(dataset, FakeEncoder), tmp_path / "fresh")
    assert all(torch.equal(fresh.image[d], features.image[d]) for d in fresh.domains)


def count_encode(cache: str, queue: multiprocessing.Queue) -> None:
    dataset, _ = make_dataset(rows=40)
    _, stats = encode_once(make_job(dataset, lambda: FakeEncoder(0.005)), Path(cache))
    queue.put(stats.encoded)


def test_two_processes_encode_every_image_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=count_encode, args=(str(tmp_path), queue)) for _ in "ab"
    ]
    for process in processes:
        process.start()
    counts = [queue.get(timeout=SECONDS) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(counts) == [0, 80]


def test_same_image_in_two_places_is_encoded_once(tmp_path):
    files = ("a", "b", "c")
    domain = ImageDomain("d", files, np.zeros(3, np.int64), lambda i: png(7))
    dataset = ImageDataset("twins", ("c0",), (domain,))
    features, stats = encode_once(make_job(dataset, FakeEncoder), tmp_path)
    assert stats.encoded == 1
    assert torch.equal(features.image["d"][0], features.image["d"][2])


def test_precision_is_decided_on_a_sample_of_all_domains(tmp_path):
    seen: list[torch.Tensor] = []

    class Careful(FakeEncoder):
        def resolve_precision(self, pixels: torch.Tensor) -> str:
            seen.append(pixels)
            return super().resolve_precision(pixels)

    dataset, _ = make_dataset(rows=200)
    features, _ = encode_once(make_job(dataset, Careful), tmp_path)
    assert len(seen) == 1
    checked = {tuple(p.reshape(-1).tolist()) for p in seen[0]}
    counts = [
        sum(tuple(row.tolist()) in checked for row in features.image[d]) for d in "ab"
    ]
    assert sum(counts) == 64
    assert min(counts) > 20


class Blind(FakeEncoder):
    """Gives zeros for all images but those ``known``, by their pixels."""

    known: list[torch.Tensor]

    def encode_images(self, pixels):
        rows = super().encode_images(pixels)
        return rows * torch.tensor([[float(self.sees(p))] for p in pixels])

    def sees(self, pixels):
        return any(torch.equal(pixels, known) for known in self.known)


def test_a_domain_of_zeros_is_refused_and_single_ones_are_noted(tmp_path):
    dataset, _ = make_dataset(rows=4)
    plain = FakeEncoder()
    pixels = [plain.preprocess(decode_image(png(i), "x")) for i in range(4)]
    Blind.known = pixels
    with pytest.raises(WeightsError, match="domain 'b': fake with none gives only"):
        encode_once(make_job(dataset, Blind), tmp_path / "b")
    (file,) = [f for f in dataset.domains[0].files if f.endswith("0003.png")]
    Blind.known = [*pixels[:3], plain.preprocess(decode_image(png(10_000), "x"))]
    features, _ = encode_once(make_job(dataset, Blind), tmp_path / "some")
    first, second = (n for n in features.notes if "zeros and say nothing" in n)
    assert first.startswith("a: the features of 1 of 4 images are zeros and say")
    assert file in first
    assert second.startswith("b: the features of 3 of 4 images")


def test_new_prompts_are_encoded_where_the_cache_may_only_be_read(
    tmp_path, monkeypatch, caplog
):
    dataset, _ = make_dataset()
    encode_once(make_job(dataset, FakeEncoder), tmp_path)

    def fails(number: int):
        def write(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return write

    other = make_job(dataset, FakeEncoder, prompts=("{} here",))
    monkeypatch.setattr("tempfile.mkstemp", fails(errno.EROFS))
    features, stats = encode_once(other, tmp_path)
    assert (stats.encoded, features.prompt) == (0, "{} here")
    assert "the captions are encoded in every run" in caplog.text
    monkeypatch.setattr("tempfile.mkstemp", fails(errno.ENOSPC))
    with pytest.raises(RunError, match="free some space"):
        encode_once(other, tmp_path)
