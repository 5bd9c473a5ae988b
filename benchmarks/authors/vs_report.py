"""From the timings of `vs-reference` to 200 rounds of all of PACS, and to a page."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.authors import round_cost as cost
from benchmarks.command import table

ROUNDS = 200  # the authors' README
TARGET = "art_painting"  # their --test_envs 0: the one that is measured
CLAIMS = {"one": 1000, "all": 3000}
WHAT = {"one": f"one target ({TARGET})", "all": "the table of four targets"}
CHOICES = ("min", "median")


def extrapolate(found: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of both sides for one target and for all four, and their ratios."""
    result: dict[str, Any] = {"authors": None}
    if found["authors"]:
        result["authors"] = {c: _authors(found, c) for c in CHOICES}
    for precision in ("auto", "fp32"):
        runs = [_ours(run, found["our_rounds"]) for run in found[precision]]
        result[precision] = {
            choice: {key: _pick(choice, [r[key] for r in runs]) for key in runs[0]}
            for choice in CHOICES
        }
    return result


def _pick(choice: str, values: list[float]) -> float:
    return float(min(values) if choice == "min" else median(values))


def _authors(found: Mapping[str, Any], choice: str) -> dict[str, Any]:
    """The rates fitted to the measured rounds, applied to the counts of all of PACS."""
    work = cost.round_work(found["sizes"], TARGET)
    steps = cost.typical(found["authors"], choice)
    rates = cost.fit_rates(steps, work)
    full = {d: cost.round_work(cost.PACS, d) for d in cost.PACS}
    seconds = {d: rates.seconds(w) for d, w in full.items()}
    proportional = sum(steps) * full[TARGET].encoded / work.encoded
    return {
        "measured_round": sum(steps),
        "measured_encodings": work.encoded,
        "rates": {"train": rates.train, "evaluate": rates.evaluate, "call": rates.call},
        "round": seconds[TARGET],
        "round_encodings": full[TARGET].encoded,
        "round_proportional": proportional,
        "one": ROUNDS * seconds[TARGET],
        "all": ROUNDS * sum(seconds.values()),
    }


def _ours(run: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """Start-up, encoding of all of PACS, and 200 rounds, from one run of ours."""
    images = sum(cost.PACS.values())
    rate = run["images_per_second"] or run["encoded"] / run["encode"]
    missing = max(images - run["encoded"], 0)
    encode = run["encode"] + missing / rate
    start = run["seconds"] - run["unpaid"] - run["encode"]
    start -= run["one"]["seconds"] + run["all"]["seconds"]
    one, four = (
        cost.longer(run[key]["seconds"], run[key]["rounds"], ROUNDS)
        for key in ("one", "all")
    )
    return {
        "start": start,
        "images_per_second": rate,
        "encode": encode,
        "round": median(run["one"]["rounds"][TARGET]),
        "one": start + encode + one,
        "all": start + encode + four,
    }


# ------------------------------------------------------------------------------ page


def markdown(results: Mapping[str, Any]) -> str:
    """The committed page: the table, the claims, how, and on what."""
    parts = [
        "# The authors' FedCLIP and this one, encoding included",
        f"{results['model']}, {ROUNDS} rounds of all of PACS (9,991 images), batch 32; "
        "seconds, minimum / median of the passes.",
        _table(results["result"]),
        *_claims(results["result"]),
        _method(results),
        _where(results),
    ]
    return "\n\n".join(parts) + "\n"


def _both(side: Mapping[str, Any] | None, key: str, digits: int = 1) -> str:
    if side is None:
        return "not measured"
    low, middle = (side[choice][key] for choice in CHOICES)
    return f"{low:,.{digits}f} / {middle:,.{digits}f}"


def _table(result: Mapping[str, Any]) -> str:
    authors, auto, fp32 = result["authors"], result["auto"], result["fp32"]
    ours = (auto, fp32)
    once = [_both(side, "encode") for side in ours]
    body = [
        ["a round", _both(authors, "round"), *(_both(o, "round", 3) for o in ours)],
        ["encoding, once", "in every round", *once],
    ]
    for key, what in WHAT.items():
        body.append([what, *(_both(side, key) for side in (authors, *ours))])
    for key, what in WHAT.items() if authors else ():
        ratios = [_ratio(authors, side, key) for side in ours]
        body.append([f"times less, {what}", "1", *ratios])
    return "\n".join(table(["", "authors", "ours, auto", "ours, fp32"], body))


def _ratio(authors: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> str:
    return " / ".join(f"{authors[c][key] / ours[c][key]:,.0f}" for c in CHOICES)


def _claims(result: Mapping[str, Any]) -> list[str]:
    if result["authors"] is None:
        return ["The authors' side was not measured: PERSONALIZEDFL_HOME was not set."]
    lines = []
    for key, wanted in CLAIMS.items():
        got = result["authors"]["median"][key] / result["auto"]["median"][key]
        verdict = "met" if got >= wanted else "NOT met"
        lines.append(
            f"- at least {wanted:,}x for {WHAT[key]}: {verdict}, {got:,.0f}x (medians)"
        )
    return ["\n".join(lines)]


def _method(results: Mapping[str, Any]) -> str:
    count = sum(results["sizes"].values())
    encoded = results["auto"][0]["encoded"]
    in_fp32 = results["fp32"][0]["encoded"]
    precision = results["auto"][0]["precision"]
    rate = _both(results["result"]["auto"], "images_per_second")
    slow = _both(results["result"]["fp32"], "images_per_second")
    lines = [
        f"- Ours, from an empty cache: {encoded:,} images encoded in {precision} "
        f"({rate} images/s), {in_fp32:,} in fp32 ({slow}); start-up, checkpoints and "
        f"reports are in the totals. {results['our_rounds']} rounds were run for "
        "every target at the full size of PACS (the features repeated to it); each "
        "further one counts as the median round, each further image by the rate.",
    ]
    if results["authors"]:
        side = results["result"]["authors"]["median"]
        rates = side["rates"]
        lines += [
            f"- Authors: {len(results['authors'])} rounds measured on {count} images: "
            f"{_both(results['result']['authors'], 'measured_round')} s for "
            f"{side['measured_encodings']} image encodings; process start, model and "
            "first batch are not counted. Rates (median): "
            f"{1e3 * rates['train']:.1f} ms a training image with its caption, "
            f"{1e3 * rates['evaluate']:.1f} ms an evaluated image, "
            f"{rates['call']:.2f} s an evaluation call (captions). A full round has "
            f"{side['round_encodings']:,} image encodings. In plain proportion to the "
            f"encodings it would take {side['round_proportional']:,.1f} s.",
            f"- Their `clip` package: {results['clip']}"
            + (
                ", open_clip's model of the same architecture in its place."
                if results["clip"] != "openai"
                else "."
            ),
        ]
    weights = results["weights"] or (
        "random, seeded: the work per image does not depend on them"
    )
    return "\n".join([*lines, f"- Weights, the same on both sides: {weights}."])


def _where(results: Mapping[str, Any]) -> str:
    m = results["machine"]
    kernels = ", ".join(m["kernels"]) or "none"
    return (
        f"Measured {m['date']} on {m['cpu']}{', ' + m['gpu'] if m['gpu'] else ''}, "
        f"{m['threads']} threads, load before the start {m['load']:.1f}; Python "
        f"{m['python']}, torch {m['torch']}, open_clip {m['open_clip']}, "
        f"fedclip-plugin {m['fedclip_plugin']}, ISA {m['isa']}, compiled kernels: "
        f"{kernels}."
    )
