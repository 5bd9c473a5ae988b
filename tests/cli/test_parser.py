"""The command line as a user meets it: exit codes, one-line errors, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedclip_plugin import __version__
from fedclip_plugin.cli import main
from tests.clip.fake_encoder import png, write_images
from tests.federation.toy import write_toy


def make_images(root: Path, domains=("d1", "d2", "d3"), classes=("cat", "dog")) -> Path:
    return write_images(root, domains, classes, 10)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def fails(capsys, *argv: object) -> str:
    """Run a command that must end with code 2 and exactly one line; returns it."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("fedclip: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def run_toy(tmp_path: Path, *more: object) -> int:
    features = tmp_path / "f"
    if not features.exists():
        write_toy(features)
    argv = ["run", "--features", features, "--target", "photo", "--rounds", 2]
    return main([str(a) for a in [*argv, "--out", tmp_path / "out", *more]])


def test_run_from_features_prints_the_table(tmp_path, capsys):
    assert run_toy(tmp_path) == 0
    captured = capsys.readouterr()
    assert "zero-shot" in captured.out
    assert "photo" in captured.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"{100 * summary['result']['target']:.2f}" in captured.out
    assert str(tmp_path / "out") in captured.err


def test_quiet_keeps_stderr_empty(tmp_path, capsys):
    assert run_toy(tmp_path, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_run_from_images_then_again_encodes_none(tmp_path, capsys):
    root = make_images(tmp_path / "images")
    argv = ["run", "--dataset", "mine", "--root", str(root), "--model", "fedclip-tiny",
            "--pretrained", "fedclip-tiny", "--rounds", "1"]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path / "one")]) == 0
    assert "60 images, 60 encoded now" in capsys.readouterr().err
    assert main([*argv, "--out", str(tmp_path / "two")]) == 0
    assert "60 images, 0 encoded now" in capsys.readouterr().err
    adapters = [
        (tmp_path / run / "d1" / "seed-0" / "adapter.safetensors").read_bytes()
        for run in ("one", "two")
    ]
    assert adapters[0] == adapters[1]


def test_features_then_run_equals_run_from_images(tmp_path, capsys):
    root = make_images(tmp_path / "images")
    model = ["--model", "fedclip-tiny", "--pretrained", "fedclip-tiny"]
    images = ["--dataset", "mine", "--root", str(root), *model]
    assert main(["features", *images, "--to", str(tmp_path / "f")]) == 0
    run = ["run", "--rounds", "2", "--target", "d2"]
    assert main([*run, "--features", str(tmp_path / "f"), "--out", "a"]) == 0
    assert main([*run, *images, "--out", "b"]) == 0
    one, two = (Path(p, "adapter.safetensors").read_bytes() for p in "ab")
    assert one == two


def test_resume_needs_only_the_directory(tmp_path, capsys):
    assert run_toy(tmp_path) == 0
    out = tmp_path / "out"
    (out / "summary.json").unlink()
    assert main(["run", "--resume", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["target"], summary["rounds"]) == ("photo", 2)


def test_bad_usage_of_run(tmp_path, capsys):
    features = write_toy(tmp_path / "f")
    argv = ("run", "--features", features, "--rounds", 1)
    assert "did you mean fedclip" in fails(capsys, *argv, "--alg", "fedclipp")
    assert "art" in fails(capsys, *argv, "--target", "artt")
    assert "rounds" in fails(capsys, *argv, "--rounds", 0)
    assert "--device cpu" in fails(capsys, *argv, "--device", "cuda:7")
    assert "c.toml" in fails(capsys, *argv, "--config", tmp_path / "c.toml")
    assert "nowhere" in fails(capsys, "run", "--features", tmp_path / "nowhere")
    assert "holds no run" in fails(capsys, "run", "--resume", "--out", "nothing")
    assert not list(tmp_path.glob("runs/*"))  # nothing is left of what never began


def test_bad_images(tmp_path, capsys):
    root = make_images(tmp_path / "images")
    argv = ["run", "--dataset", "mine", "--root", root, "--model", "fedclip-tiny",
            "--pretrained", "fedclip-tiny", "--rounds", 1]  # fmt: skip
    assert "nowhere" in fails(capsys, *argv[:4], tmp_path / "nowhere", *argv[5:])
    broken = root / "d2" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    line = fails(capsys, *argv)
    assert "d2/dog/3.png" in line
    assert "--on-bad-image skip" in line
    out = tmp_path / "skipped"
    assert main([str(a) for a in [*argv, "--on-bad-image", "skip", "--out", out]]) == 0
    summary = json.loads((out / "d1" / "seed-0" / "summary.json").read_text())
    assert summary["skipped_images"] == ["d2/dog/3.png"]
    (root / "d3" / "bird").mkdir()
    (root / "d3" / "bird" / "0.png").write_bytes(png(1))
    line = fails(capsys, *argv)
    assert "bird" in line
    assert "d3" in line


def test_bad_models(tmp_path, capsys):
    root = make_images(tmp_path / "images")
    argv = ["run", "--dataset", "mine", "--root", root, "--rounds", 1]
    assert "ViT-B" in fails(capsys, *argv, "--model", "ViT-B/33")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"x" * 100)
    line = fails(capsys, *argv, "--model", "fedclip-tiny", "--pretrained", junk)
    assert "junk.safetensors" in line


def test_unwritable_out(tmp_path, capsys):
    features = write_toy(tmp_path / "f")
    (tmp_path / "file").write_text("")
    argv = ("run", "--features", features, "--rounds", 1)
    assert "is a file" in fails(capsys, *argv, "--out", tmp_path / "file")
    assert "file/deeper" in fails(capsys, *argv, "--out", tmp_path / "file" / "deeper")


def test_features_of_another_format(tmp_path, capsys):
    features = write_toy(tmp_path / "f")
    header = json.loads((features / "features.json").read_text())
    (features / "features.json").write_text(json.dumps({**header, "format": 99}))
    assert "format 99" in fails(capsys, "run", "--features", features)


def test_report_of_runs(tmp_path, capsys):
    assert run_toy(tmp_path) == 0
    capsys.readouterr()
    out = str(tmp_path / "out")
    for kind, mark in (("table", "zero-shot"), ("markdown", "|"), ("csv", ",")):
        assert main(["report", out, "--format", kind]) == 0
        assert mark in capsys.readouterr().out
    (tmp_path / "out" / "report.html").unlink()
    assert main(["report", out, "--format", "html"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert "nowhere" in fails(capsys, "report", tmp_path / "nowhere")


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboard")
    assert run_toy(tmp_path, "--tensorboard") == 0
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    "command", [[], ["run"], ["features"], ["data"], ["report"], ["export"], ["doctor"]]
)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "--roundz=3"], "unknown option --roundz; did you mean --rounds?"),
        (["run", "digits"], "unknown argument digits (see fedclip run --help)"),
        (["runn"], "; did you mean run? (see fedclip --help)"),
        (["run", "--rounds"], "expected one argument (see fedclip run --help)"),
        (["nvflare", "jobs"], "; did you mean job? (see fedclip nvflare --help)"),
        (["report"], "required: RUN (see fedclip report --help)"),
    ],
)
def test_bad_usage_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedclip: error: ")
    assert message in line


def test_installed_command_starts_quickly_and_knows_its_version(tmp_path):
    code = (
        "import sys; from fedclip_plugin.cli import main; sys.exit(main(['--version']))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert __version__ in done.stdout
    assert "torch" not in {
        x.rpartition("|")[2].strip() for x in done.stderr.splitlines()
    }


def test_interrupt_tells_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write_toy(tmp_path / "f")
    monkeypatch.setattr("fedclip_plugin.runs.files.RunFiles.add", interrupt)
    assert run_toy(tmp_path) == 130
    assert f"--resume --out {tmp_path / 'out'}" in capsys.readouterr().err


def test_our_own_fault_has_code_1(tmp_path, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    write_toy(tmp_path / "f")
    monkeypatch.setattr("fedclip_plugin.runs.experiment.run_one", broken)
    assert run_toy(tmp_path) == 1
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


def test_export_writes_a_classifier_that_agrees(tmp_path, capsys):
    root = make_images(tmp_path / "images")
    model = ["--model", "fedclip-tiny", "--pretrained", "fedclip-tiny"]
    run = ["run", "--dataset", "mine", "--root", str(root), *model, "--rounds", "1"]
    assert main([*run, "--target", "d1", "--out", str(tmp_path / "out")]) == 0
    argv = ["export", str(tmp_path / "out"), "--to", str(tmp_path / "e")]
    assert main([*argv, "--format", "torch"]) == 0
    told = json.loads((tmp_path / "e" / "classifier.json").read_text())
    assert told["classes"] == ["cat", "dog"]
    assert (tmp_path / "e" / "classifier.pt2").is_file()
    assert run_toy(tmp_path, "--out", tmp_path / "toy") == 0
    line = fails(capsys, "export", tmp_path / "toy", "--to", tmp_path / "t", *model)
    assert "width 16" in line
    assert "no adapter" in fails(capsys, "export", tmp_path, "--to", tmp_path / "t")


def test_full_disk_in_the_middle_of_a_run_is_told_and_resumable(tmp_path):
    """A file-size quota stands in for the full disk; the run goes on after it."""
    features = write_toy(tmp_path / "f")
    code = (
        "import resource, signal, sys; from fedclip_plugin.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1));"
        "sys.exit(main(sys.argv[2:]))"
    )
    out = tmp_path / "out"
    run = ["run", "--features", str(features), "--target", "photo", "--rounds", "40"]
    done = subprocess.run(
        [sys.executable, "-c", code, "6000", *run, "--out", str(out), "--quiet"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "metrics.jsonl" in done.stderr
    assert main(["run", "--resume", "--out", str(out), "--quiet"]) == 0
    assert main([*run, "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    adapters = [(p / "adapter.safetensors") for p in (out, tmp_path / "whole")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_hosts_are_listed_with_how_to_select_fedclip(capsys):
    assert main(["hosts"]) == 0
    text = capsys.readouterr().out
    for words in ("FedML", "PersonalizedFL", "Flower", "flwr run .", "main.py --alg"):
        assert words in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["register", "nohost", "x"], "unknown host 'nohost' (known: fedml"),
        (["register", "personalisedfl", "x"], "did you mean personalizedfl?"),
        (["register", "flower"], "Flower needs no registration"),
        (["register", "nvflare"], "NVFlare needs no registration"),
        (["register", "fedml"], "is registered for one process"),
        (["register", "personalizedfl"], "name its folder"),
        (["register", "fedml", "x"], "is registered for one process"),
    ],
)
def test_what_cannot_be_registered(argv, message, capsys):
    assert message in fails(capsys, *argv)


def test_a_preset_yields_to_single_options(tmp_path):
    assert run_toy(tmp_path, "--preset", "best", "--lr", "0.5") == 0
    text = (tmp_path / "out" / "config.toml").read_text()
    assert "lr = 0.5" in text
    assert "weight_decay = 0.0" in text


@pytest.mark.parametrize(
    "more", [["--preset", "worst"], ["--preset", "best", "--alg", "linear"]]
)
def test_a_preset_that_does_not_fit(more, tmp_path, capsys):
    features = write_toy(tmp_path / "f")
    line = fails(capsys, "run", "--features", features, *more)
    assert "for --alg " in line
    assert "expected" in line
