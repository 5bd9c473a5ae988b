"""Accuracy against bytes: every codec of ``--compress`` on one set of features.

    python -m benchmarks codecs --features DIR

Every domain in turn is held out; its images take no part in choosing the round.
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.accuracy.study import (
    BEST,
    Place,
    Row,
    Study,
    federation,
    run_study,
    run_to_end,
)
from benchmarks.command import measured_on, table
from fedclip_plugin.algorithms.adapter import initial_state
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.report.figures.svg import figure_style
from fedclip_plugin.report.wording import percent
from fedclip_plugin.server import screening
from fedclip_plugin.stats import ci95, mean
from fedclip_plugin.wire import compression
from fedclip_plugin.wire.codecs import CODECS
from fedclip_plugin.wire.update import ClientUpdate

PRESETS: dict[str, Row] = {"best": BEST, "paper": {}}
WAYS = ("bytes_up", "bytes_down")
EVAL_EVERY = 5  # rounds; the one that is best on validation rows is taken
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "int4": {"compress": "int4"},
    "int4 both ways": {"compress": "int4", "compress_down": "int4"},
    "int4, int8 down": {"compress": "int4", "compress_down": "int8"},
    "topk 10 %": {"compress": "topk", "topk_share": 0.1},
    "topk 5 %": {"compress": "topk", "topk_share": 0.05},
    "int8": {"compress": "int8"},
    "int8 both ways": {"compress": "int8", "compress_down": "int8"},
    "fp16": {"compress": "fp16"},
    "topk 20 %": {"compress": "topk", "topk_share": 0.2},
    "topk 1 %": {"compress": "topk", "topk_share": 0.01},
    "topk 5 %, no feedback": {"compress": "topk", "error_feedback": "off"},
    "int4, no feedback": {"compress": "int4", "error_feedback": "off"},
}
LABELLED = {  # in the figure, and how far from its point, in points
    "fp32": (-7, 3),
    "int8 both ways": (7, 3),
    "int4, int8 down": (-7, -12),
    "int4 both ways": (7, 3),
    "topk 1 %": (-7, 3),
}
COLOURS = {"best": "#0072b2", "paper": "#d55e00"}  # Okabe and Ito's


class Codecs(Study):
    """A row for each preset and codec."""

    name = "codecs"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """On top of what the codecs are tried."""
        parser.add_argument("--presets", nargs="+", default=list(PRESETS))

    def identity(self) -> Row:
        """What all rows were run with."""
        args = self.args
        key = [args.features.name, self.features.key, args.rounds, args.seeds]
        return {"key": key}

    def facts(self) -> Row:
        """With the milliseconds of each codec."""
        repeats = 2 if self.args.quick else 30
        return {"machine": machine(), "speed": speed(repeats=repeats)}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every codec on every preset."""
        for name, preset in itertools.product(SETTINGS, self.args.presets):
            options = {**PRESETS[preset], **SETTINGS[name]}
            yield ("presets", preset, name), partial(self.row, options)

    def row(self, options: Row) -> Row:
        """Bytes of a client in a round; scores of the best rounds, a list a target."""
        options = {"rounds": self.args.rounds, "eval_every": EVAL_EVERY, **options}
        row: Row = {"targets": {}, "clients": {}}
        sizes: dict[str, list[float]] = {way: [] for way in WAYS}
        for target, seed in itertools.product(self.features.domains, self.args.seeds):
            fed = federation(self, target, seed, options)
            run = run_to_end(fed)
            for way, found in sizes.items():
                total = getattr(run.last.progress, way)
                found.append(total / self.args.rounds / len(fed.clients))
            row["targets"].setdefault(target, []).append(run.best.target)
            row["clients"].setdefault(target, []).append(run.best.mean_test)
        return row | {way: round(mean(found) or 0) for way, found in sizes.items()}

    @staticmethod
    def page(results: Row) -> str:
        """A table for each preset, and one of milliseconds."""
        name, _, rounds, seeds = results["key"]
        lines = [
            "# Compressed updates",
            "",
            f"`python -m benchmarks codecs` on {name}: {rounds} rounds, seeds {seeds}, "
            f"every domain held out in turn; {measured_on(results['machine'])}.  Bytes "
            "are those of one client in one round, with names and checksum; without "
            "`down` or `both ways` the state goes down in fp32.  Fewer: up alone, and "
            "both ways together.  Accuracy in per cent of the best round on the "
            f"clients' validation rows, of every {EVAL_EVERY}th, and its difference to "
            "fp32 in points; ± is the 95 % interval over seeds, each a mean over "
            "targets.",
        ]
        for preset, rows in results["presets"].items():
            lines += ["", f"## `--preset {preset}`", "", *_table(rows)]
        heads = ["codec", *next(iter(results["speed"].values()))]
        times = [
            [codec, *(f"{ms:.2f}" for ms in row.values())]
            for codec, row in results["speed"].items()
        ]
        lines += [
            "",
            "## Milliseconds for one adapter (D = 512), CPU time of one thread",
        ]
        return "\n".join([*lines, "", *table(heads, times)]) + "\n"

    @staticmethod
    def picture(results: Row) -> str:
        """Accuracy over bytes."""
        return _svg(results["presets"])


def speed(dim: int = 512, repeats: int = 30) -> dict[str, dict[str, float]]:
    """CPU milliseconds of one thread for one adapter, the least of ``repeats``."""
    sent = initial_state(dim, seed=0)
    generator = torch.Generator().manual_seed(0)
    state = {
        key: value + 1e-4 * torch.randn(value.shape, generator=generator)
        for key, value in sent.items()
    }
    found = {}
    for name, codec in CODECS.items():
        payload, kept = compression.encode(codec, state, sent, {})
        update = ClientUpdate("", payload, 1, codec=name)
        calls = {
            "encode": lambda c=codec, k=kept: compression.encode(c, state, sent, k),
            "check": lambda n=name, p=payload: compression.fault(n, p, sent),
            "distance": lambda u=update: screening.distances([u], sent),
            "decode": lambda u=update: compression.decoded([u], sent),
            "mean of 8": lambda u=update: compression.mean(
                [u] * 8, torch.ones(8), sent
            ),
        }
        found[name] = {what: _least(call, repeats) for what, call in calls.items()}
    return found


def _least(call: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * min(times)


# ------------------------------------------------------------------------------ report


def over_seeds(per_target: dict[str, list[float]]) -> list[float]:
    """Mean over targets, a value a seed."""
    return [sum(values) / len(values) for values in zip(*per_target.values())]


def _cell(values: Sequence[float], show: Callable[..., str] = percent) -> str:
    half = ci95(values)
    return show(mean(values)) + (f" ± {100 * half:.2f}" if half is not None else "")


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.2f}"


def _table(rows: dict[str, Any]) -> list[str]:
    heads = ["codec", "bytes up", "bytes down", "fewer up", "fewer in all"]
    heads += ["held out", "to fp32", "clients", "to fp32"]
    base = rows["fp32"]
    body = []
    for name, row in rows.items():
        cells = [
            name,
            *(f"{row[way]:,}" for way in WAYS),
            f"{base['bytes_up'] / row['bytes_up']:.1f}x",
            f"{both_ways(base) / both_ways(row):.1f}x",
        ]
        for kind in ("targets", "clients"):
            values, usual = over_seeds(row[kind]), over_seeds(base[kind])
            gaps = [a - b for a, b in zip(values, usual)]
            cells += [_cell(values), _cell(gaps, _signed)]
        body.append(cells)
    return table(heads, body)


def both_ways(row: dict[str, Any]) -> int:
    """Bytes up and down."""
    return sum(row[way] for way in WAYS)


def _svg(presets: dict[str, Any]) -> str:
    """Accuracy of the held-out domains over bytes both ways; a colour a preset."""
    with figure_style():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for preset, rows in presets.items():
            shown = {n: r for n, r in rows.items() if "feedback" not in n}
            points = sorted(
                (both_ways(r), over_seeds(r["targets"]), n) for n, r in shown.items()
            )
            x = [size for size, _, _ in points]
            y = [100 * (mean(values) or 0) for _, values, _ in points]
            half = [100 * (ci95(values) or 0) for _, values, _ in points]
            style: Row = {"color": COLOURS.get(preset), "fmt": "o", "capsize": 3}
            axes.errorbar(x, y, half, label=f"--preset {preset}", **style)
            for (size, _, name), top in zip(points, y):
                if away := LABELLED.get(name):
                    axes.annotate(
                        name,
                        (size, top),
                        textcoords="offset points",
                        xytext=away,
                        ha="left" if away[0] > 0 else "right",
                    )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("bytes both ways, a client and round")
        axes.set_ylabel("held-out accuracy, %")
        axes.set_xticks(
            [2**e for e in range(18, 23)], [_size(e) for e in range(18, 23)]
        )
        axes.minorticks_off()
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.legend(frameon=False, loc="center left")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _size(exponent: int) -> str:
    return (
        f"{2 ** (exponent - 10)} KiB"
        if exponent < 20
        else f"{2 ** (exponent - 20)} MiB"
    )


def main(argv: Sequence[str] | None = None) -> None:
    run_study(Codecs, __doc__, argv)
