"""Every partition is shown before it is run, and one that cannot be is a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import PARTITIONS
from fedclip_plugin.features.feature_set import load_features

MORE = {"classes": ["--classes-per-client", "2"]}
KINDS = [kind for kind in PARTITIONS if kind != "domain"]


def dry_run(features: Path, kind: str, *words: str) -> int:
    line = ["run", "--dry-run", "--features", str(features), "--target", "none"]
    line += ["--partition", kind, "--alg", "gda", *MORE.get(kind, [])]
    return main([*line, *words])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", ["--clients", "--clients-per-domain"])
def test_a_partition_is_shown_or_refused_in_a_line(
    kind: str, count: str, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(toy, kind, count, "4") == 0
    shown = capsys.readouterr().out
    clients = 4 if count == "--clients" else 12
    assert f"clients: {clients}, {clients} a round" in shown
    assert f"partition: {kind}: " in shown
    first = "client-000" if count == "--clients" else "art-0"
    (line,) = [x for x in shown.splitlines() if x.split()[:1] == [first]]
    cells = line.split()[1:]
    assert len(cells) == len(load_features(toy).classes)
    assert any(cell != "." for cell in cells)
    assert dry_run(toy, kind, count, "999") == 2
    told = capsys.readouterr()
    (line,) = [x for x in (told.err + told.out).splitlines() if "999" in x]
    assert "Traceback" not in told.err
    assert "images" in line
