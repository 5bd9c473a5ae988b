from __future__ import annotations

import importlib
import importlib.metadata
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedclip_plugin.cli import main
from fedclip_plugin.cli.doctor import (
    Check,
    diagnose,
    inputs,
    machine,
    software,
)
from fedclip_plugin.cli.doctor.run_directory import check_run
from fedclip_plugin.clip import download as hub
from fedclip_plugin.clip import encoder
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.features.feature_set import FeatureSet, save_features
from fedclip_plugin.runs.experiment import run_in
from tests.clip.makers import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, and two domains of two classes with four images each."""
    root = tmp_path_factory.mktemp("doctor")
    tiny_clip(root, "tiny-doctor")
    rng = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            (root / "images" / domain / name).mkdir(parents=True)
            for i in range(4):
                image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                file = root / "images" / domain / name / f"{i}.png"
                Image.fromarray(image).save(file)
    return root


def _config(folder: Path, file: str = "tiny-doctor.safetensors", **model) -> RunConfig:
    return RunConfig(
        model=ModelConfig(
            "tiny-doctor",
            str(folder / file),
            str(folder),
            **{"precision": "fp32", "device": "cpu", **model},
        ),
        data=DataConfig("mine", str(folder / "images")),
    )


def _by_name(config: RunConfig) -> dict[str, Check]:
    checks = diagnose(config)
    assert all(check.status in ("ok", "warn", "fail") for check in checks)
    assert all("\n" not in check.detail + check.remedy for check in checks)
    assert all(check.remedy for check in checks if check.status == "warn")
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_a_sound_setup(folder):
    found = _by_name(_config(folder))
    failed = [check for check in found.values() if check.status == "fail"]
    assert not failed
    assert torch.__version__.split("+")[0] in found["versions"].detail
    assert "2 classes; images: photo 8, sketch 8" in found["data"].detail
    assert "32x32 pixels, GELU" in found["model"].detail
    assert "logit scale 100.00" in found["weights"].detail
    assert found["encoding"] == Check(
        "encoding", "ok", "fp32 on 8 images: cosine with fp32 1.00000"
    )


def test_nothing_is_printed_or_fetched(folder, capfd, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda url: pytest.fail("asked the network"))
    diagnose(_config(folder))
    assert capfd.readouterr().out == ""


def test_every_fault_is_found_at_once(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FEDCLIP_CACHE", str(folder / "tiny-doctor.json" / "below"))
    config = RunConfig(
        model=ModelConfig("ViT-B-31", device="cuda"),
        data=DataConfig("mine", str(folder / "gone")),
    )
    found = _by_name(config)
    for name in ("device", "data", "model", "cache"):
        assert found[name].status == "fail", name
        assert found[name].remedy, name
    assert "FEDCLIP_CACHE" in found["cache"].remedy
    assert "ViT-B-32" in found["model"].remedy


def test_a_quickgelu_mismatch_fails(folder):
    config = RunConfig(
        model=ModelConfig("ViT-B-32-quickgelu", "laion2b_s34b_b79k", device="cpu")
    )
    check = _by_name(config)["model"]
    assert (check.status, check.remedy) == ("fail", "use --model ViT-B-32")


@pytest.mark.parametrize(("online", "status"), [(True, "warn"), (False, "fail")])
def test_weights_that_are_not_here_yet(folder, monkeypatch, tmp_path, online, status):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(inputs, "reachable", lambda url: online)
    config = RunConfig(model=ModelConfig("ViT-B/32", device="cpu"))
    found = _by_name(config)
    assert found["model"].detail.startswith("ViT-B-32-quickgelu with openai")
    assert found["weights"].status == status
    assert ("--pretrained FILE" in found["weights"].remedy) is not online


def _damaged(folder: Path, name: str, change) -> str:
    state = load_file(folder / "tiny-doctor.safetensors")
    change(state)
    save_file(state, folder / name)
    return name


def test_an_implausible_logit_scale_warns(folder):
    file = _damaged(
        folder, "raw.safetensors", lambda s: s["logit_scale"].fill_(np.log(1 / 0.07))
    )
    assert _by_name(_config(folder, file))["weights"].status == "warn"


def test_nan_in_fp16_is_found_before_the_run(folder):
    def overflow(state):
        state["visual.ln_post.bias"].fill_(100)
        state["visual.proj"].fill_(6e4)

    file = _damaged(folder, "hot.safetensors", overflow)
    check = _by_name(_config(folder, file, precision="fp16"))["encoding"]
    assert check.status == "fail"
    assert "--precision bf16" in check.detail + check.remedy
    assert _by_name(_config(folder, file))["encoding"].status == "ok"


def test_a_rounded_encoder_is_compared_with_fp32(folder, monkeypatch):
    check = _by_name(_config(folder, precision="bf16"))["encoding"]
    assert check.status == "ok"
    assert check.detail.startswith("bf16 on 8 images: cosine with fp32 0.99")
    monkeypatch.setattr(encoder, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(encoder, "low_precision", lambda device: "bf16")
    check = _by_name(_config(folder, precision="auto"))["encoding"]
    assert check.detail.startswith("bf16 on 8 images")


def test_a_truncated_checkpoint_is_named(folder):
    whole = (folder / "tiny-doctor.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-9])
    check = _by_name(_config(folder, "cut.safetensors"))["model"]
    assert check.status == "fail"
    assert "cut.safetensors" in check.detail


def test_a_missing_class_warns(folder, tmp_path):
    for name in ("a/cat", "a/dog", "b/cat", "b/dog"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/cat", "a/dog", "b/cat"):
        Image.new("RGB", (8, 8), "white").save(tmp_path / name / "1.png")
    config = RunConfig(data=DataConfig("mine", str(tmp_path)))
    check = _by_name(config)["data"]
    assert check.status in ("warn", "fail")
    assert "dog" in check.detail


def _features(directory: Path, rows: int) -> None:
    names = ("photo", "sketch")
    features = FeatureSet(
        model="m",
        pretrained="p",
        prompt="a {}",
        classes=("cat", "dog"),
        domains=names,
        logit_scale=100.0,
        embed_dim=4,
        key="k",
        text=torch.randn(2, 4),
        image={n: torch.randn(rows, 4) for n in names},
        label={n: torch.tensor([0, 1] * (rows // 2)) for n in names},
    )
    save_features(features, directory)


def test_a_feature_directory_needs_neither_model_nor_images(tmp_path):
    _features(tmp_path / "f", 6)
    found = _by_name(RunConfig(data=DataConfig(features=str(tmp_path / "f"))))
    assert "photo 6, sketch 6" in found["features"].detail
    assert not {"model", "weights", "data", "encoding"} & set(found)
    gone = RunConfig(data=DataConfig(features=str(tmp_path / "gone")))
    assert _by_name(gone)["features"].status == "fail"


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of one round, from features."""
    top = tmp_path_factory.mktemp("finished")
    _features(top / "f", 12)
    config = RunConfig(
        data=DataConfig("mine", features=str(top / "f"), targets=("sketch",)),
        train=TrainConfig(rounds=1),
    )
    run_in(top / "run", config)
    return top / "run"


def _copied(finished: Path, to: Path) -> Path:
    return Path(shutil.copytree(finished, to / "run"))


def test_a_finished_and_a_broken_run(finished, tmp_path):
    run = _copied(finished, tmp_path)
    found = {check.name: check for check in check_run(run)}
    assert found["run"].status == "ok"
    assert "finished after round 1 of 1, the best is 1" in found["run"].detail
    (run / "summary.json").unlink()
    found = {check.name: check for check in check_run(run)}
    assert found["run"].detail == "broken off after round 1 of 1"
    assert f"fedclip run --resume --out {run}" in found["run"].remedy
    shutil.rmtree(run / "checkpoint")
    assert "after round 0 of 1" in check_run(run)[-1].detail
    before = sorted(path.name for path in run.rglob("*"))
    check_run(run)
    assert sorted(path.name for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("config.toml", "run config"),
        ("checkpoint/last.safetensors", "run checkpoint"),
        ("metrics.jsonl", "run results"),
        ("summary.json", "run results"),
        ("adapter.safetensors", "run adapter"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, file, name, capsys):
    run = _copied(finished, tmp_path)
    with (run / file).open("r+b") as damaged:
        damaged.write(b"[[{")
    (check,) = [check for check in check_run(run) if check.failed]
    assert check.name == name
    assert file in check.detail
    assert check.remedy or "restore it" in check.detail
    assert main(["doctor", str(run)]) == 2
    assert file in capsys.readouterr().out


def test_doctor_of_a_run_checks_what_the_run_needs(finished, tmp_path, capsys):
    assert main(["doctor", str(finished)]) == 0
    told = capsys.readouterr().out
    assert "features" in told
    assert "finished after round 1" in told
    run = _copied(finished, tmp_path)
    text = (run / "config.toml").read_text()
    gone = text.replace(str(finished.parent / "f"), str(tmp_path / "gone"))
    (run / "config.toml").write_text(gone)
    assert main(["doctor", str(run)]) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().out
    assert main(["doctor", str(run), "--features", str(finished.parent / "f")]) == 0
    assert main(["doctor", str(tmp_path)]) == 2
    assert "name a directory that" in capsys.readouterr().out


def test_every_run_of_a_tree_is_told(finished, tmp_path):
    for target, seed in (("photo", 0), ("sketch", 1)):
        shutil.copytree(finished, tmp_path / target / f"seed-{seed}")
    shutil.copy(finished / "config.toml", tmp_path)
    (tmp_path / "sketch" / "seed-1" / "summary.json").unlink()
    found = {check.name: check.status for check in check_run(tmp_path)}
    assert found["run photo/seed-0"] == "ok"
    assert found["run sketch/seed-1"] == "warn"


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
