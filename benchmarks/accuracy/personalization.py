"""What personalization gives each client, over the shared adapter and zero-shot.

    python -m benchmarks personalization --features DIR [--runs DIR]

FedCLIP is run with every domain held out in turn, and the shared adapter of the best
round is then personalized both ways.  Clients: the domains, and 20 clients whose
classes are drawn from a Dirichlet with alpha 0.1.  The held-out domain is the *new
client*: it starts from an adapter that never saw it.  Finished runs stay in --runs,
beside those of ``benchmarks.accuracy.methods``, and are not run again.  Results go to
results/personalization.json and .md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.methods import FEATURE_METHODS
from benchmarks.accuracy.study import finish_runs, markdown_table
from benchmarks.timing import machine
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.config.toml import from_dict, load_toml
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.report.records import RunRecord
from fedclip_plugin.report.wording import percent, points
from fedclip_plugin.stats import ci95, mean
from fedclip_plugin.storage.tensors import read_tensors

RESULTS = Path(__file__).parents[1] / "results" / "personalization"
_FILE = RESULTS.with_suffix(".json")
LOCAL, PAPER, BEST = "local adapters", "FedCLIP, paper", "FedCLIP, best"
SKEWED = ("--partition", "dirichlet", "--alpha", "0.1", "--clients", "20")
CLIENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "domains": ((), (LOCAL, PAPER, BEST)),
    "20 clients, alpha 0.1": ((*SKEWED, "--eval-every", "10"), (BEST,)),
}
"""Name -> options of ``fedclip run``, and the methods."""
BASES = ("zero_shot", "shared", "personal")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, personalize and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    args = parser.parse_args(argv)
    features = load_features(args.features)
    found = json.loads(_FILE.read_text()) if _FILE.is_file() else {"rows": []}
    found |= {"features": args.features.name, "machine": machine()}
    rows = {_key(row): row for row in found["rows"]}
    about = {"rounds": args.rounds, "seeds": args.seeds}
    for clients, (words, labels) in CLIENTS.items():
        folder = args.runs / ("features" if not words else "features-dirichlet")
        local: float | None = None
        jobs = {label: _words(label, words, args) for label in labels}
        for label, runs in finish_runs(jobs, folder):
            if label == LOCAL:
                local = _alone(runs)
                continue
            for method in ("finetune", "mix"):
                row = {**about, "clients": clients, "adapter": label, "method": method}
                if _key(row) not in rows:
                    each = [c for run in runs for c in _personal(run, features, method)]
                    rows[_key(row)] = {**row, **_figures(each), "alone": local}
                found["rows"] = list(rows.values())
                _FILE.write_text(json.dumps(found, indent=1) + "\n")
                RESULTS.with_suffix(".md").write_text(_markdown(found))


def _key(row: Mapping[str, Any]) -> str:
    keys = ("clients", "adapter", "method", "rounds", "seeds")
    return json.dumps([row[key] for key in keys])


def _words(label: str, words: Sequence[str], args: argparse.Namespace) -> list[str]:
    shared = ["--features", str(args.features), "--rounds", str(args.rounds)]
    return [*FEATURE_METHODS[label], *shared, "--seed", *map(str, args.seeds), *words]


def _alone(runs: Sequence[RunRecord]) -> float | None:
    """Mean test accuracy of the clients that train alone."""
    tests = [run.summary["result"]["clients"].values() for run in runs]
    return mean(value for values in tests for value in values)


def _personal(
    run: RunRecord, features: FeatureSet, method: str
) -> Iterator[dict[str, Any]]:
    """A row a client, the new one among them."""
    config = from_dict(RunConfig, load_toml(run.path / "config.toml"))
    fed = build_federation(features, config, run.target, run.summary["seed"])
    shared, _ = read_tensors(run.path / "adapter.safetensors")
    found = personalize(fed, shared, method, keep=lambda name, state: None)
    for key in ("clients", "new_clients"):
        for row in found[key].values():
            yield {"new": key == "new_clients", "seed": run.summary["seed"], **row}


def _figures(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        kind: _gains([row for row in each if row["new"] == new])
        for kind, new in (("known", False), ("new", True))
    }


def _gains(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over targets, seeds and clients; intervals over seeds and over clients."""
    rows = [row for row in rows if row["personal"] is not None]
    found: dict[str, Any] = {k: mean(row[k] for row in rows) for k in BASES}
    for base in BASES[:2]:
        gains = [row["personal"] - row[base] for row in rows]
        seeds: dict[int, list[float]] = {}
        for row, gain in zip(rows, gains):
            seeds.setdefault(row["seed"], []).append(gain)
        found[f"gain_over_{base}"] = {
            "mean": mean(gains),
            "ci95_seeds": ci95(mean(values) for values in seeds.values()),
            "ci95_clients": ci95(gains),
        }
    over = [row["personal"] - row["shared"] for row in rows]
    found["count"] = len(rows)
    found["better"] = sum(gain > 0 for gain in over)
    found["worse"] = sum(gain < 0 for gain in over)
    found["below_zero_shot"] = sum(row["personal"] < row["zero_shot"] for row in rows)
    return found


# ------------------------------------------------------------------------------ report


def _markdown(found: Mapping[str, Any]) -> str:
    on, first = found["machine"], found["rows"][0]
    rounds, seeds = first["rounds"], first["seeds"]
    lines = [
        "# Personalization",
        "",
        "`python -m benchmarks personalization --features DIR` on "
        f"{found['features']}: {rounds} rounds, seeds {seeds}, every "
        f"domain held out in turn; {on['cpu']}, torch {on['torch']}, {on['date']}.  "
        "Test accuracy in per cent, mean over clients, targets and seeds.  How far a "
        "client goes is chosen on its validation rows.  The two ± are 95 % intervals: "
        "over the seeds, and over all clients of all runs (a client of several "
        "runs counts in each, so the second is rather too narrow).  *Alone*: the "
        "client's own adapter, never sent, by the paper's hyper-parameters.",
    ]
    titles = {"known": "Clients of the federation", "new": "New client (held out)"}
    for kind, title in titles.items():
        lines += ["", f"## {title}", "", *_table(found["rows"], kind)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    known = kind == "known"
    head = ["clients", "adapter", "by", "zero-shot", *(["alone"] if known else [])]
    head += ["shared", "personal", "over shared", "over zero-shot"]
    head += ["better / worse than shared", "below zero-shot"]
    body = []
    for row in rows:
        got = row[kind]
        alone = [percent(row["alone"])] if known else []
        body.append(
            [
                *(row["clients"], row["adapter"], row["method"]),
                *(percent(got["zero_shot"]), *alone, percent(got["shared"])),
                percent(got["personal"]),
                *(_gain(got[f"gain_over_{base}"]) for base in ("shared", "zero_shot")),
                f"{got['better']} / {got['worse']} of {got['count']}",
                f"{got['below_zero_shot']}",
            ]
        )
    return markdown_table(head, body)


def _gain(gain: Mapping[str, float | None]) -> str:
    halves = (gain["ci95_seeds"], gain["ci95_clients"])
    shown = " / ".join("-" if h is None else f"{100 * h:.2f}" for h in halves)
    return f"{points(gain['mean'])} ± {shown}"


if __name__ == "__main__":
    main()
