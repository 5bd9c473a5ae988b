"""`fedclip doctor`: libraries, kernels, GPU, disks and terminal."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import pytest
import torch

from fedclip_plugin.cli.doctor import (
    diagnose,
    machine,
    software,
)
from fedclip_plugin.config.schema import RunConfig


def test_hosts_are_found_without_importing_them(monkeypatch):
    def version(name):
        if name == "flwr":
            return "1.41.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(name))
    fedml, flower, nvflare = software.check_hosts()
    assert (flower.name, flower.detail) == ("host flower", "1.41.0")
    assert "fedclip-plugin[fedml]" in fedml.detail
    assert "fedclip-plugin[nvflare]" in nvflare.detail


def test_libraries_older_than_required_fail(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["torch>=99.1", "onnx>=99; extra == 'export'"],
    )
    (check,) = software.check_versions()
    assert (check.status, check.remedy) == ("fail", "pip install 'torch>=99.1'")


def test_torchvision_of_another_torch(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch==1.2.3"])
    (check,) = software.check_torchvision()
    assert (check.status, "built for torch 1.2.3" in check.detail) == ("warn", True)

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    (check,) = software.check_torchvision()
    assert (check.status, "nms" in check.detail) == ("fail", True)


def test_missing_kernels_and_little_memory_warn(monkeypatch):
    found = {"compiled": False, "note": "_C was not built"}
    found |= {"isa": "generic", "threads": 2}
    monkeypatch.setattr(machine, "capabilities", lambda: found)
    (check,) = machine.check_kernels()
    assert (check.status, "_C was not built" in check.detail) == ("warn", True)
    monkeypatch.setattr(machine, "_free_memory", lambda: 2**28)
    assert machine.check_memory()[0].status == "warn"
    monkeypatch.setattr(machine, "_free_memory", lambda: None)
    assert machine.check_memory()[0].status == "ok"


def test_operators_that_are_left_to_pytorch_are_named(monkeypatch):
    found = {"compiled": True, "isa": "generic", "threads": 2, "slower": ["adapter"]}
    monkeypatch.setattr(machine, "capabilities", lambda: found)
    (check,) = machine.check_kernels()
    assert check.status == "ok"
    assert "generic; PyTorch's own, which are faster here, for adapter" in check.detail


def test_a_gpu_that_this_pytorch_cannot_use_warns(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    (check,) = machine.check_device("auto")
    assert (check.status, "CUDA build" in check.remedy) == ("warn", True)
    assert machine.check_device("cpu")[0].status == "ok"


def test_a_broken_installation_is_a_finding_not_a_crash(monkeypatch):
    monkeypatch.setattr(machine, "capabilities", lambda: 1 / 0)
    found = {check.name: check for check in diagnose(RunConfig())}
    assert found["kernels"].status == "fail"
    assert "ZeroDivisionError" in found["kernels"].detail


class _Gpu:
    name, total_memory, major, minor = "Old GPU", 2**33, 3, 5


def test_a_gpu_without_kernels_in_this_pytorch_fails(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available")

    cuda = torch.device("cuda")
    monkeypatch.setattr(machine, "resolve_device", lambda name: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Gpu)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch, "ones", refuse)
    (check,) = machine.check_device("auto")
    assert check.failed
    assert "compute capability 3.5" in check.detail
    assert "sm_75, sm_90" in check.remedy
    assert "--device cpu" in check.remedy


def test_why_a_gpu_does_without_the_cuda_kernels_is_told(monkeypatch):
    cuda, ones = torch.device("cuda:1"), torch.ones
    monkeypatch.setattr(machine, "resolve_device", lambda name: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Gpu)
    monkeypatch.setattr(machine, "low_precision", lambda device: "fp16")
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    refusals = ["", "no kernel image is available"]
    monkeypatch.setattr(machine, "cuda_refusal", lambda index: refusals[index])
    (check,) = machine.check_device("cuda:1")
    assert check.status == "ok"
    assert "no CUDA kernels: no kernel image is available" in check.detail


def test_a_home_that_is_not_there(monkeypatch, tmp_path):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert machine.check_home()[0].status == "ok"
    for variable in ("HF_HOME", "FEDCLIP_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for home in (nobody, lambda: tmp_path / "gone"):
        monkeypatch.setattr(Path, "home", home)
        (check,) = machine.check_home()
        assert check.status == "warn"
        assert "HF_HOME" in check.remedy
    for variable in ("HF_HOME", "FEDCLIP_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert machine.check_home()[0].status == "ok"


def test_a_disk_without_locks_or_sync_or_speed(monkeypatch, tmp_path):
    sound = machine.check_disk("cache", tmp_path, "another")
    assert sound.status == "ok"
    monkeypatch.setattr(machine, "SLOW_SECONDS", -1.0)
    assert "slow: 1 MiB took" in machine.check_disk("cache", tmp_path, "x").detail

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("os.fsync", refuse)
    check = machine.check_disk("cache", tmp_path, "another")
    assert check.status == "warn"
    assert "not synced" in check.detail
    assert "without locks" in check.detail
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert machine.check_disk("cache", tmp_path / "file", "another").failed


def test_a_terminal_that_is_narrow_or_ascii(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    (check,) = machine.check_terminal()
    assert (check.status, "COLUMNS" in check.remedy) == ("warn", True)
    monkeypatch.setenv("COLUMNS", "100")
    assert machine.check_terminal()[0].status == "ok"
    monkeypatch.setattr("rich.console.Console.encoding", "ascii")
    (check,) = machine.check_terminal()
    assert (check.status, "PYTHONIOENCODING" in check.remedy) == ("warn", True)


def test_a_filled_cache_that_may_only_be_read_is_of_use(monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert machine.check_cache()[0].failed
    (tmp_path / "features").mkdir()
    (check,) = machine.check_cache()
    assert check.status == "warn"
    assert "only what it holds" in check.detail
