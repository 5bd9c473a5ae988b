"""The measurements of bench_ops.py as Markdown."""

from __future__ import annotations

from typing import Any

SIZES = ("dim", "batch", "clients", "threads")
NAMES = {"dim": "D", "batch": "rows", "clients": "clients", "threads": "threads"}
PERCENTS = {"peak_percent": "% of FMA peak", "read_percent": "% of read bandwidth"}


def _table(rows: list[dict[str, Any]]) -> list[str]:
    sizes = [s for s in SIZES if any(s in r for r in rows)]
    rivals = list(dict.fromkeys(k for r in rows for k in r["ratio"]))
    percents = [p for p in PERCENTS if any(p in r for r in rows)]
    head = [NAMES[s] for s in sizes] + ["ours, us", *rivals]
    head += [PERCENTS[p] for p in percents]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = [str(r.get(s, "")) for s in sizes]
        cells.append(" / ".join(f"{v:.0f}" for v in r["us"]["ours"]))
        for name in rivals:
            pair = r["ratio"].get(name)
            cells.append(" / ".join(f"{v:.2f}x" for v in pair) if pair else "")
        cells += [f"{r[p]} %" if p in r else "" for p in percents]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def markdown(report: dict[str, Any]) -> str:
    """A heading for each operator, a line for each size."""
    m = report["machine"]
    lines = [
        f"# Operators on the CPU, {m['isa']}",
        "",
        f"{m['date']}; {m['cpu']}, {m['cores']} cores (load {m['load']}); torch "
        f"{m['torch']}, Python {m['python']}; FMA peak of one core "
        f"{m['fma_peak_gflops']} GFLOP/s.",
        "",
        "Each cell is minimum / median of interleaved runs. A rival's cell is its time "
        "over ours: above 1 it is slower.",
    ]
    for what in dict.fromkeys(r["what"] for r in report["rows"]):
        rows = [r for r in report["rows"] if r["what"] == what]
        lines += ["", f"## {what.capitalize()}", "", *_table(rows)]
        errors = [f"{r['clients']}: {r['error']:.1e}" for r in rows if "error" in r]
        if errors:
            lines += ["", "Largest error over rms, against float64, by clients: "]
            lines[-1] += ", ".join(dict.fromkeys(errors)) + "."
    return "\n".join(lines) + "\n"
