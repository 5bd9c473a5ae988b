"""The page: its numbers, its escaping, and that it asks nothing of the network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from fedclip_plugin.report.averages import aggregate
from fedclip_plugin.report.figures.rounds import accuracy_curve, loss_curve
from fedclip_plugin.report.figures.svg import Chart
from fedclip_plugin.report.page import page
from fedclip_plugin.report.records import RunRecord
from fedclip_plugin.report.write import write_html
from tests.report.synthetic_runs import leaf_summary, write_leaf, write_tree
from tests.waiting import SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--enable-logging=stderr", "--dump-dom"),
)
VOID = {"meta", "link", "br", "path", "use", "rect", "image"}


class Page(HTMLParser):
    """Texts of cells, every attribute, and a check that tags are balanced."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.stack: list[str] = []
        self.feed(source)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("td", "th", "dd", "b"):
            self.cells.append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th", "dd", "b"} & set(self.stack):
            self.cells[-1] += data


def page_of(path: Path) -> str:
    return write_html(path).read_text(encoding="utf-8")


def cent(value: float) -> str:
    return f"{100 * value:.2f}"


def test_leaf_numbers_equal_the_summary(tmp_path: Path) -> None:
    summary = write_leaf(tmp_path)
    cells = Page(page_of(tmp_path)).cells
    for which in ("zero_shot", "result"):
        assert cent(summary[which]["target"]) in cells
        assert cent(summary[which]["mean"]) in cells
        for value in summary[which]["clients"].values():
            assert cent(value) in cells
    assert {"fedclip-tiny", "digits", "sketch", "12", "10"} <= set(cells)
    assert "2.0 MiB up, 2.0 MiB down a round" in cells
    assert "features 4.25 s, train 1.50 s, evaluate 0.50 s, in all 6.25 s" in cells


def test_tree_numbers_equal_the_aggregate(tmp_path: Path) -> None:
    total = aggregate(write_tree(tmp_path, seeds=(0, 1), domains=("scan", "photo")))
    cells = Page(page_of(tmp_path)).cells
    for row in [total["mean"] | {"ci95": total["ci95"]}, *total["by_target"].values()]:
        assert cent(row["zero_shot"]["target"]) in cells
        half = cent(row["ci95"]["target"])
        assert f"{cent(row['result']['target'])} ± {half}" in cells
    row = total["by_target"]["scan"]["clients"]["photo"]
    for which, name in (("zero_shot", "zero-shot"), ("result", "FedCLIP")):
        assert f"scan {name} held out {cent(row[which])}" in " ".join(cells)


def assert_asks_nothing(source: str) -> None:
    found = Page(source)
    for tag, name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        for target in re.findall(r"url\(([^)]*)\)", value):
            assert target.startswith("#")
    assert not re.search(r"https?://", source)
    assert "@import" not in source
    assert "<script" not in source
    assert "default-src 'none'" in source
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    write_tree(tmp_path, seeds=(0,), domains=("scan", "photo"))
    assert_asks_nothing(page_of(tmp_path))


def test_texts_of_the_run_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    quote = '" onload="x'
    summary = leaf_summary(evil, clients=(quote, "{b}", "ünï"), skipped_images=[evil])
    summary |= {"model": f"{evil}m", "dataset": quote, "algorithm": "<i>alg"}
    write_leaf(tmp_path, summary, classes=(evil, quote, "'x'"))
    source = page_of(tmp_path)
    assert_asks_nothing(source)
    for text in (evil, "<i>"):
        assert text not in source
    for text in (evil, quote, "<i>alg"):
        assert str(escape(text)) in source
    assert "{b}" in source


def test_nulls(tmp_path: Path) -> None:
    summary = leaf_summary(None, clients=("a", "b"))
    summary["result"]["clients"]["b"] = summary["zero_shot"]["clients"]["b"] = None
    write_leaf(tmp_path, summary)
    source = page_of(tmp_path)
    assert "no domain" in source
    assert "held-out: zero-shot" not in source
    assert not re.search(r"\b(nan|None)\b", re.sub(r"<[^>]*>", " ", source))


def test_only_a_summary(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    for name in ("metrics.jsonl", "evaluation.json", "config.toml"):
        (tmp_path / name).unlink()
    source = page_of(tmp_path)
    assert "Accuracy per round" not in source
    assert "Zero-shot and trained, per domain" in source


def test_below_zero_shot_is_said(tmp_path: Path) -> None:
    write_leaf(tmp_path, leaf_summary("photo", gain=-0.1))
    source = page_of(tmp_path)
    assert 'class="warn">FedCLIP is below zero-shot: held-out photo' in source
    assert "10.00 points below zero-shot CLIP" in source


def test_left_out_and_how_to_run_again(tmp_path: Path) -> None:
    names = [f"x/{i}.jpg" for i in range(1200)]
    write_leaf(tmp_path, leaf_summary(quarantined=7, skipped_images=names))
    source = page_of(tmp_path)
    assert "7 client updates were quarantined" in source
    assert "1,200 images were skipped" in source
    assert "x/0.jpg" in source
    assert "and 1,000 more" in source
    command = "fedclip run --config config.toml --target sketch --seed 0 --out again"
    assert command in source


def test_many_runs_stay_below_five_megabytes(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(30))
    for seed in range(12):
        write_leaf(tmp_path / f"seed-{seed}", leaf_summary("scan", seed), classes=names)
    source = page_of(tmp_path)
    assert len(source.encode()) < 5_000_000
    assert source.count("<summary>FedCLIP, scan held out") == 8
    assert "4 of the 12 runs are not drawn here" in source


def test_methods_stand_in_one_table_with_what_they_cost(tmp_path: Path) -> None:
    for name, gain in (("fedclip", 0.1), ("fedavg", -0.05)):
        for seed in (0, 1):
            summary = leaf_summary("photo", seed, algorithm=name, gain=gain)
            write_leaf(tmp_path / name / f"seed-{seed}", summary)
    source = page_of(tmp_path)
    assert "<h2>Methods on digits, fedclip-tiny</h2>" in source
    compared = source[: source.index("<h2>Results</h2>")]
    cells = Page(compared[compared.index("<table>") : compared.index("</table>") + 8])
    rows = " ".join(cells.cells)
    assert "zero-shot 59.80" in rows  # the guard line comes first
    assert "FedCLIP 70.30 ± 6.35 +10.50" in rows
    assert "FedAVG 55.30 ± 6.35 -4.50" in rows
    assert "71.10 68.80 29.70 144.3 MiB 1.50 s" in rows
    assert "Against FedCLIP, held-out accuracy in points" in compared
    assert "FedAVG is below zero-shot: held-out photo" in compared
    assert "Held-out accuracy against bytes, mean over runs, %" in compared
    assert "Held-out accuracy against training time, mean over runs, %" in compared
    assert_asks_nothing(source)


def test_other_data_are_not_compared(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a", leaf_summary("photo"))
    write_leaf(tmp_path / "b", leaf_summary("photo", algorithm="fedavg", dataset="x"))
    assert "<h2>Methods on" not in page_of(tmp_path)


def test_several_directories_go_to_one_page(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a", leaf_summary("photo"))
    write_leaf(tmp_path / "b", leaf_summary("photo", algorithm="fedavg"))
    path = write_html(tmp_path / "a", tmp_path / "b", to=tmp_path / "both.html")
    assert path == tmp_path / "both.html"
    assert "FedCLIP, FedAVG on digits" in path.read_text(encoding="utf-8")
    assert not (tmp_path / "a" / "report.html").exists()


def test_a_runs_charts_are_drawn_once_and_anew_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def loss(run: RunRecord) -> Chart | None:
        drawn.append(run.target)
        return loss_curve(run)

    monkeypatch.setattr(page, "_CHARTS", (accuracy_curve, loss))
    write_leaf(tmp_path / "a")
    alone = page_of(tmp_path / "a")
    write_leaf(tmp_path / "b", leaf_summary("photo"))
    both = page_of(tmp_path)
    assert len(drawn) == 2
    for svg in re.findall(r"<svg.*?</svg>", alone, re.S):
        assert svg in both
    ids = re.findall(r'\bid="([^"]+)"', both)
    assert len(ids) == len(set(ids))
    write_leaf(tmp_path / "a", leaf_summary(seed=7))
    page_of(tmp_path / "a")
    assert len(drawn) == 3


def test_class_metrics_are_shown(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    metrics = "balanced accuracy 61.10 -&gt; 71.10, macro F1 58.80 -&gt; 68.80, "
    metrics += "calibration error 39.70 -&gt; 29.70"
    assert page_of(tmp_path).count(metrics) == 2  # of all runs, and of this one


def personal(zero_shot: float, shared: float, own: float) -> dict[str, float]:
    return {"choice": 4, "zero_shot": zero_shot, "shared": shared, "personal": own}


def test_personalization_is_told_per_client(tmp_path: Path) -> None:
    found = {
        "method": "mix",
        "clients": {f"<c{i}>": personal(0.5, 0.6, 0.7) for i in range(30)},
        "new_clients": {"target": personal(0.4, 0.61, 0.55)},
        "gain_over_shared": {"mean": 0.1, "ci95": 0.02},
        "gain_over_zero_shot": {"mean": 0.2, "ci95": None},
    }
    write_leaf(tmp_path, leaf_summary("photo", personalization=found))
    source = page_of(tmp_path)
    told = "+10.00 ± 2.00 points over the shared adapter and +20.00 points over"
    assert told in source
    assert "<summary>Each client</summary>" in source  # many are folded
    cells = " ".join(Page(source).cells)
    assert "photo new client 40.00 61.00 55.00 -6.00 +15.00" in cells
    assert "<c29> 50.00 60.00 70.00 +10.00 +20.00" in cells


def test_algorithms_stand_apart(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a", leaf_summary("photo"))
    write_leaf(tmp_path / "b", leaf_summary("photo", algorithm="fedavg", gain=0.05))
    source = page_of(tmp_path)
    assert "<h1>FedCLIP, FedAVG on digits</h1>" in source
    assert source.count("<h2>Results</h2>") == 2


def browse(path: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess:
    own = f"--user-data-dir={profile}"
    command = [str(CHROMIUM), *FLAGS, own, *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def one_run(path: Path) -> int:
    """A run of its own; returns the number of its figures."""
    write_leaf(path, leaf_summary("a-long-domain-name-indeed"))
    return 6


def two_methods(path: Path) -> int:
    """100 clients and two methods, one with a long list of settings."""
    clients = [f"client-{i:03d}" for i in range(100)]
    for name, variant in (("fedclip", "lr 0.0002, partition dirichlet"), ("local", "")):
        summary = leaf_summary("photo", clients=clients, algorithm=name)
        write_leaf(path / name, summary | {"variant": variant})
    return 2 + 2 * 6


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("write", [one_run, two_methods])
def test_browser_opens_it_without_a_complaint_at_phone_width(
    write: Callable[[Path], int], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    figures = write(run)
    source = page_of(run)
    shown = browse(run / "report.html", tmp_path / "profile")
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<figure>") == figures
    # the same page with a probe, which its own policy would refuse
    probe = "<script>document.title = innerWidth + ' ' + "
    probe += "document.documentElement.scrollWidth</script></body>"
    source = re.sub(r"<meta http-equiv[^>]*>", "", source).replace("</body>", probe)
    (run / "probe.html").write_text(source, encoding="utf-8")
    seen = browse(run / "probe.html", tmp_path / "profile", "--window-size=360,800")
    width, content = re.findall(r"<title>(\d+) (\d+)</title>", seen.stdout)[0]
    assert int(content) <= int(width) <= 500
