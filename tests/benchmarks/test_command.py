"""``python -m benchmarks``: the list, the studies' skeleton, the committed pages."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks.accuracy.ablation import Ablation
from benchmarks.accuracy.attacks import Attacks
from benchmarks.accuracy.beyond_gda import BeyondGda
from benchmarks.accuracy.codecs import Codecs
from benchmarks.accuracy.gda_attacks import GdaAttacks
from benchmarks.accuracy.gda_privacy import GdaPrivacy
from benchmarks.accuracy.methods import MethodsStudy
from benchmarks.accuracy.personalization import Personalization
from benchmarks.accuracy.privacy import Privacy
from benchmarks.accuracy.protocols import Protocols
from benchmarks.accuracy.study import Study
from benchmarks.command import RESULTS, ROOT
from benchmarks.gpu.check import GPU_TESTS
from benchmarks.scale import embedded, figures, hosts
from fedclip_plugin.errors import RunError

STUDIES = (
    Ablation,
    Attacks,
    BeyondGda,
    Codecs,
    GdaAttacks,
    GdaPrivacy,
    MethodsStudy,
    Personalization,
    Privacy,
    Protocols,
)


def test_every_benchmark_is_listed_with_what_it_answers(capsys):
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, benchmark in command.BENCHMARKS.items():
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert benchmark.answer
        assert line.endswith(benchmark.answer)


def test_another_name_is_refused(capsys):
    assert command.main(["ablatoin"]) == 2
    assert "no benchmark 'ablatoin': ablation, attacks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("/d: no space"), 2, "scale: error: /d: no space"),
        (
            CalledProcessError(2, ["python"]),
            1,
            "scale: a process ended with exit code 2",
        ),
    ],
)
def test_what_ends_a_benchmark_is_one_line(error, code, line, capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr("benchmarks.scale.embedded.main", fail)
    assert command.main(["scale"]) == code
    assert capsys.readouterr().err.splitlines() == [line]


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_explains_itself(name, capsys):
    benchmark = command.BENCHMARKS[name]
    if reason := benchmark.missing():
        pytest.skip(reason)
    module = importlib.import_module(f"benchmarks.{benchmark.module}")
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    text = capsys.readouterr().out
    assert f"python -m benchmarks {name} " in text
    assert all(option in text for option in ("--quick", "--out DIR", "--write"))


def cells_of(page: str) -> list[str]:
    """Its lines, whatever way the columns of tables are set."""
    lines = [" ".join(line.split()) for line in page.splitlines()]
    return [line for line in lines if not line or set(line) - set("|-: ")]


def texts_of(picture: str) -> list[str]:
    """What it says; the paths are another release of matplotlib's."""
    return re.findall(r">([^<>]+)</text>", picture)


def committed(name: str) -> tuple[dict, str]:
    """Results and page."""
    text = (RESULTS / f"{name}.json").read_text()
    return json.loads(text), (RESULTS / f"{name}.md").read_text()


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_committed_page_says_what_was_measured(study: type[Study]):
    results, page = committed(study.name)
    assert cells_of(study.page(results)) == cells_of(page)
    if picture := study.picture(results):
        assert texts_of(picture) == texts_of(
            (RESULTS / f"{study.name}.svg").read_text()
        )


def test_so_do_the_pages_of_scale():
    results, page = committed("scale")
    assert cells_of(embedded.report(results)) == cells_of(page)
    committed_picture = (RESULTS / "scale.svg").read_text()
    assert texts_of(figures.embedded_svg(results)) == texts_of(committed_picture)
    results, page = committed("scale-hosts")
    assert cells_of(hosts.report(results["runs"])) == cells_of(page)
    committed_picture = (RESULTS / "scale-hosts.svg").read_text()
    drawn = figures.hosts_svg(results["runs"])
    assert texts_of(drawn) == texts_of(committed_picture)


def test_a_study_goes_on_where_it_ended(tmp_path: Path, capsys):
    from benchmarks.accuracy import privacy

    words = ["--quick", "--rounds", "1", "--out", str(tmp_path)]
    privacy.main(words)
    first = capsys.readouterr()
    assert first.err.count("runs ") == len(privacy.NOISE)
    file = tmp_path / "privacy.json"
    results = json.loads(file.read_text())
    del results["runs"]["4 0"]
    file.write_text(json.dumps(results))
    privacy.main(words)
    again = capsys.readouterr()
    assert again.err.split("\n") == ["runs 4 0", ""]
    assert again.out == first.out == (tmp_path / "privacy.md").read_text() + "\n"
    privacy.main([*words, "--seeds", "1"])  # of other settings: begun anew
    assert capsys.readouterr().err.count("runs ") == len(privacy.NOISE)


def test_a_study_needs_features(capsys):
    from benchmarks.accuracy import ablation

    with pytest.raises(SystemExit, match="2"):
        ablation.main([])
    assert "it needs --features DIR" in capsys.readouterr().err


def test_the_tests_of_the_gpu_are_there():
    assert all((ROOT / name).is_file() for name in GPU_TESTS)


@pytest.mark.parametrize(
    ("row", "kept"),
    [({"seeds": [0]}, False), ({"seeds": [0, 1, 2]}, True), ({"refused": "x"}, True)],
)
def test_rows_of_fewer_seeds_are_made_anew(row, kept):
    study = object.__new__(Protocols)
    study.args, study.results = SimpleNamespace(seeds=[0, 1, 2]), {"novel": {"d": row}}
    assert study._stored(("novel", "d")) == (row if kept else None)
