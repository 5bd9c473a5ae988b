"""Progress as it is shown: lines where there is no terminal, bars where there is."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedclip_plugin.cli.console import Display
from fedclip_plugin.features.feature_set import load_features, save_features
from tests.federation.toy import write_toy


def terminal() -> tuple[Display, io.StringIO]:
    display, screen = Display(), io.StringIO()
    display.err = Console(file=screen, force_terminal=True, width=100)
    return display, screen


def test_lines_are_thinned_out_but_the_last_is_always_said(capsys):
    with Display() as display:
        for done in range(1, 101):
            display.images("encode", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the first at once, the last because it is the last
    assert lines[-1].startswith("encode: 100/100")


def test_rate_does_not_count_what_came_before_the_clock(capsys, monkeypatch):
    clock = itertools.chain([10.0, 10.0], itertools.repeat(12.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Display() as display:
        display.images("encode", 64, 164)
        display.images("encode", 164, 164)
    assert "50 images/s" in capsys.readouterr().err


def test_finished_bars_become_lines_and_results_come_after_them():
    display, screen = terminal()
    with display:
        display.images("encode", 5, 10)
        display.images("encode", 10, 10)
        assert display.finish() is display.out
        before = screen.getvalue()
        display.images("encode", 10, 10)
    assert "encode: 10/10" in before
    assert screen.getvalue().rstrip().endswith("encode: 10/10")


def test_quiet_shows_nothing_but_notes_that_no_file_keeps(capsys):
    with Display(quiet=True) as display:
        display.images("encode", 10, 10)
        display.say("news")
        display.notes(["of a run"], kept=True)
        assert capsys.readouterr().err == ""
        display.notes(["of an evaluation"])
    assert capsys.readouterr().err == "note: of an evaluation\n"


# ------------------------------------------------------------------- trouble of stdout


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a domain and class names that few code pages have."""
    folder = tmp_path_factory.mktemp("chinese")
    features = load_features(write_toy(folder / "toy"))
    names = {"photo": "照片"}

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {names.get(k, k): v for k, v in values.items()}

    domains = tuple(names.get(d, d) for d in features.domains)
    changed = replace(
        features,
        domains=domains,
        image=renamed(features.image),
        label=renamed(features.label),
    )
    save_features(changed, folder / "f")
    return folder


def shell(
    folder: Path, line: str, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    fedclip = f"{sys.executable} -m fedclip_plugin.cli"
    return subprocess.run(
        ["bash", "-c", line.replace("fedclip", fedclip)],
        cwd=folder, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environ},
    )  # fmt: skip


RUN = "fedclip run --features f --target 照片 --rounds 1 --quiet"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_stdout_shows_other_signs(chinese: Path, encoding: str) -> None:
    done = shell(chinese, f"{RUN} --out {encoding}", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?? FedCLIP" in done.stdout
    done = shell(chinese, f"fedclip report {encoding} --format csv",
                 PYTHONIOENCODING=encoding)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{RUN} --out closed | true", 0),
        (f"{RUN} --out all >&- 2>&- <&-", 0),
        (f"{RUN[:-8]} --out both 2>&1 | true", 0),
        ("fedclip run --help | true", 0),
        ("fedclip doctor --dataset nowhere | true", 2),
        ("fedclip doctor --dataset nowhere > /dev/full", 2),
    ],
)
def test_output_that_nobody_takes_never_changes_the_verdict(
    chinese: Path, line: str, code: int
) -> None:
    done = shell(chinese, f"{line}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == code
    assert b"internal fault" not in done.stderr
    if "--out" in line:
        out = line.partition("--out ")[2].split()[0]
        assert (chinese / out / "summary.json").is_file()
