"""Features of a run: what is recorded, and what happens where a GPU is full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import GpuMemoryError
from fedclip_plugin.features import obtain
from tests.clip.fake_encoder import make_dataset
from tests.federation.toy import DOMAINS, toy_features

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that were begun; the first finds the memory of its GPU full."""
    begun = []

    def encode_once(job, cache, progress):
        begun.append(job)
        if len(begun) == 1:
            raise GpuMemoryError("the GPU's memory is full")
        return job, None

    monkeypatch.setattr(obtain, "encode_once", encode_once)
    return begun


def test_a_full_gpu_gives_way_to_the_cpu_and_says_so(jobs):
    job, _ = obtain.encode_dataset(make_dataset()[0], RunConfig())
    assert len(jobs) == 2
    assert "encoded on the CPU" in job.notes[-1]


def test_a_device_that_was_named_is_not_left(jobs):
    config = RunConfig(model=ModelConfig(device="cpu"))
    with pytest.raises(GpuMemoryError):
        obtain.encode_dataset(make_dataset()[0], config)


def test_what_was_used_is_recorded(jobs):
    job, _ = obtain.encode_dataset(make_dataset()[0], RunConfig())
    assert job.encoder["name"] == job.model == "fedclip-tiny"
    assert len(job.encoder["sha256"]) == 64
    assert job.encoder["activation"] == "GELU"


class _Full(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_full_gpu_is_no_fault_of_the_weights():
    spec = EncoderSpec.from_config(RunConfig())
    clip = FrozenClip.load(replace(spec, device="cpu", precision="fp32"))
    clip.model.visual = _Full()
    size = clip.source.image_size
    with pytest.raises(GpuMemoryError, match="--device cpu"):
        clip.encode_images(torch.zeros(1, 3, *size))


def test_images_of_a_split_that_are_not_there_are_noted_once(tmp_path: Path) -> None:
    names = {d: tuple(f"{d}/{i}.jpg" for i in range(60)) for d in DOMAINS}
    features = replace(toy_features(), files=names)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [["art/0.jpg", 0], ["art/99.jpg", 0]]}))
    for classes, said in (((), ["art/99.jpg"]), (("class0",), [])):
        data = DataConfig(split=str(split), classes=classes)
        found, _ = obtain.obtain_features(RunConfig(data=data), data=features)
        notes = [note.rpartition(" ")[2] for note in found.notes if "named in" in note]
        assert notes == said
