"""What do lying clients cost, under each rule of aggregation?

    python -m benchmarks attacks --features DIR

Twenty iid clients of all domains but one, of which a share lies in every round
(``attack_models.py``); accuracy of the held-out domain after the last round.  Updates
that screening leaves out whoever averages (NaN, wrong shapes, a million times too long)
are run under the mean alone, and compared to the bit with a run in which those clients
do not answer.  Results go to results/attacks.json, .md and .svg; what is in the json
file already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.attack_models import LIES, Attacked, attackers
from benchmarks.timing import machine, out_file
from fedclip_plugin.config.schema import (
    AGGREGATIONS,
    PRESETS,
    DataConfig,
    RunConfig,
    TrainConfig,
)
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import RunState, federate
from fedclip_plugin.federation.evaluation import score_zero_shot
from fedclip_plugin.report.wording import percent
from fedclip_plugin.stats import ci95, mean

CELL, HIGH, LEFT, TOP = 34, 26, 118, 74  # pixels


_GOOD, _BAD = (27, 120, 55), (178, 24, 43)


def heat_map(
    attacks: Sequence[str],
    rules: Sequence[str],
    shares: Sequence[float],
    value: Callable[[str, str, float], float | None],
    ends: tuple[float, float],
) -> str:
    """An SVG: attacks down, rules across, in each the shares of attackers.

    ``value`` is an accuracy; red is ``ends[0]`` or less, green ``ends[1]`` or more.
    """
    wide = CELL * len(shares) + 6
    width, height = LEFT + wide * len(rules), TOP + HIGH * len(attacks) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(4, 20, "accuracy in %, by share of attackers", "start"),
    ]
    for j, rule in enumerate(rules):
        left = LEFT + wide * j
        parts.append(_text(left + wide // 2, TOP - 26, rule))
        for k, share in enumerate(shares):
            parts.append(_text(left + CELL * k + CELL // 2, TOP - 8, f"{share:.0%}"))
        for i, attack in enumerate(attacks):
            for k, share in enumerate(shares):
                found = value(attack, rule, share)
                if found is not None:
                    parts += _tile(left + CELL * k, TOP + HIGH * i, found, ends)
    for i, attack in enumerate(attacks):
        parts.append(_text(LEFT - 8, TOP + HIGH * i + 17, attack, "end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _tile(x: int, y: int, value: float, ends: tuple[float, float]) -> list[str]:
    low, high = ends
    place = min(max((value - low) / (high - low), 0.0), 1.0)
    rgb = ",".join(str(_mixed(place, part)) for part in range(3))
    box = f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{HIGH - 2}" rx="3" '
    ink = "white" if abs(place - 0.5) > 0.3 else "black"
    label = _text(x + CELL // 2 - 1, y + 16, f"{100 * value:.0f}", fill=ink)
    return [f'{box}fill="rgb({rgb})"/>', label]


def _mixed(place: float, part: int) -> int:
    """From red over a pale grey to green."""
    ends, share = (_BAD, 1 - 2 * place) if place < 0.5 else (_GOOD, 2 * place - 1)
    return round(240 + share * (ends[part] - 240))


def _text(x: int, y: int, text: str, anchor: str = "middle", fill: str = "#222") -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"


RESULTS = Path(__file__).parents[1] / "results" / "attacks"


SCREENED = ("nan", "shapes", "scale-1e6")


SHARES = (0.0, 0.1, 0.3, 0.45)


UNSCREENED = "mean, any distance"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--target", default="sketch", help="held-out domain")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=out_file, default=RESULTS, help="without ending")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    features = load_features(args.features)
    settings = {
        k: getattr(args, k) for k in ("target", "clients", "rounds", "seeds")
    } | {"features": args.features.name, "train": PRESETS["best"]}
    found = _earlier(args.out.with_suffix(".json"), settings)
    feds = {seed: _federation(features, args, seed) for seed in args.seeds}
    fed = feds[args.seeds[0]]
    found["zero_shot"] = score_zero_shot(fed.clients, fed.target, fed.task)["target"]
    for seed, (attack, rule, share) in itertools.product(args.seeds, cells()):
        key = f"{attack} {rule} {share:g} {seed}"
        if key not in found["runs"]:
            found["runs"][key] = _run(feds[seed], attack, rule, share)
            print(key, found["runs"][key], flush=True)
            args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(found))
    args.out.with_suffix(".svg").write_text(_picture(found))


def cells() -> Iterator[tuple[str, str, float]]:
    """Attack, rule and share of every run; 0 attackers once a rule."""
    yield from (("none", rule, 0.0) for rule in AGGREGATIONS)
    open_to_all = [attack for attack in LIES if attack not in SCREENED]
    yield from itertools.product(open_to_all, AGGREGATIONS, SHARES[1:])
    yield from itertools.product(SCREENED, ("mean",), SHARES[1:])
    yield from itertools.product(("scale-1e6",), (UNSCREENED,), SHARES[1:])


def _earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "machine": machine(), "runs": {}}
    return found


def _federation(
    features: FeatureSet, args: argparse.Namespace, seed: int
) -> Federation:
    data = DataConfig(dataset="features", partition="iid", clients=args.clients)
    train = TrainConfig(rounds=args.rounds, eval_every=args.rounds, **PRESETS["best"])
    config = RunConfig(data=data, train=train)
    return build_federation(features, config, args.target, seed)


def _run(fed: Federation, attack: str, rule: str, share: float) -> dict[str, Any]:
    """Accuracies after the last round; ``lost`` tells whether screening cost a bit."""
    change: dict[str, Any] = {"aggregation": rule}
    if rule == UNSCREENED:
        change = {"aggregation": "mean", "max_norm_ratio": 0.0}
    train = replace(fed.task.train, byzantine=max(0.3, share), **change)
    fed, seed = replace(fed, task=replace(fed.task, train=train)), fed.task.seed
    if attack == "none":
        return _result(_last(fed))
    liars = attackers(fed.clients, share, seed)
    last = _last(replace(fed, algorithm=Attacked(attack, liars)))
    result = _result(last)
    if attack in SCREENED and rule == "mean":
        honest = tuple(c for c in fed.clients if c.name not in liars)
        alone = _last(replace(fed, clients=honest)).state
        result["lost"] = not all(
            torch.equal(alone[k], v) for k, v in last.state.items()
        )
    return result


def _last(fed: Federation) -> RunState:
    *_, last = federate(fed)
    return last


def _result(last: RunState) -> dict[str, Any]:
    assert last.result is not None
    return {
        "target": last.result.target,
        "clients": last.result.mean_test,
        "quarantined": last.progress.quarantined,
    }


# ------------------------------------------------------------------------------ report


def accuracies(
    found: dict[str, Any], attack: str, rule: str, share: float
) -> list[float]:
    """Of the held-out domain, a value a seed; nobody attacks where the share is 0."""
    if not share:
        attack, rule = "none", rule.partition(",")[0]
    keys = (f"{attack} {rule} {share:g} {s}" for s in found["settings"]["seeds"])
    return [found["runs"][key]["target"] for key in keys if key in found["runs"]]


def _picture(found: dict[str, Any]) -> str:
    attacks = [attack for attack in LIES if attack not in SCREENED]
    plain = mean(accuracies(found, "none", "mean", 0.0)) or 1.0

    def value(attack: str, rule: str, share: float) -> float | None:
        return mean(accuracies(found, attack, rule, share))

    ends = (found["zero_shot"], plain)
    return heat_map(attacks, AGGREGATIONS, SHARES[1:], value, ends)


def _cell(values: Sequence[float]) -> str:
    half = ci95(values)
    return percent(mean(values)) + (f" ± {100 * half:.1f}" if half is not None else "")


def markdown(found: dict[str, Any]) -> str:
    """The table: attack and rule down, share of attackers across."""
    s, on = found["settings"], found["machine"]
    lines = [
        "# Lying clients",
        "",
        f"`python -m benchmarks attacks` on {s['features']}, {s['target']} held out: "
        f"{s['clients']} iid clients of the other domains, {s['rounds']} rounds, "
        f"preset best, seeds {s['seeds']}; {on['cpu']}, torch {on['torch']}, "
        f"{on['date']}.  Accuracy of the held-out domain in per cent after the last "
        "round, ± the 95 % interval over seeds; zero-shot "
        f"{percent(found['zero_shot'])}.  Rules reckon with 30 % attackers, with 45 % "
        "in the last column.",
        "",
        "![attack by rule](attacks.svg)",
        "",
        f"| attack | rule | {' | '.join(f'{100 * x:g} %' for x in SHARES)} |",
        "|---|---|" + "---:|" * len(SHARES),
    ]
    pairs = dict.fromkeys((a, r) for a, r, _ in cells() if a != "none")
    for attack, rule in pairs:
        row = [_cell(accuracies(found, attack, rule, share)) for share in SHARES]
        lines.append(f"| {attack} | {rule} | {' | '.join(row)} |")
    missing = len(s["seeds"]) * len(list(cells())) - len(found["runs"])
    if missing:
        lines += ["", f"{missing} runs are still missing: cells stand for fewer seeds."]
    lost = [r["lost"] for r in found["runs"].values() if "lost" in r]
    lines += [
        "",
        f"Screening alone, under the mean, against {', '.join(SCREENED)}: {len(lost)} "
        f"runs, of which {len(lost) - sum(lost)} end in the very bits of a run without "
        "the attackers' clients.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
