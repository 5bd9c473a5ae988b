"""What do lying clients cost, under each rule of aggregation?

    python -m benchmarks attacks --features DIR

Twenty iid clients of all domains but one, of which a share lies in every round
(``attack_models.py``); accuracy of the held-out domain after the last round.  Updates
that screening leaves out whoever averages (NaN, wrong shapes, a million times too long)
are run under the mean alone, and compared to the bit with a run in which those clients
do not answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from html import escape

import torch

from benchmarks.accuracy.attack_models import LIES, Attacked, attackers
from benchmarks.accuracy.study import (
    Ended,
    IidStudy,
    Place,
    Row,
    federation,
    run_study,
    run_to_end,
)
from benchmarks.command import measured_on, table
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.config.schema import AGGREGATIONS
from fedclip_plugin.federation.evaluation import score_zero_shot
from fedclip_plugin.report.wording import percent
from fedclip_plugin.stats import ci95, mean

SCREENED = ("nan", "shapes", "scale-1e6")
UNSCREENED = "mean, any distance"
SHARES = (0.0, 0.1, 0.3, 0.45)
OPEN_TO_ALL = tuple(attack for attack in LIES if attack not in SCREENED)


class Attacks(IidStudy):
    """A row for each attack, rule, share of attackers and seed."""

    name = "attacks"
    rounds = 10
    clients = 20

    def facts(self) -> Row:
        """With the accuracy of zero-shot."""
        fed = federation(self, self.args.target, self.args.seeds[0], {})
        zero_shot = score_zero_shot(fed.clients, fed.target, fed.task)["target"]
        return {"machine": machine(), "zero_shot": zero_shot}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every cell with every seed."""
        for seed, cell in itertools.product(self.args.seeds, cells()):
            attack, rule, share = cell
            place = ("runs", f"{attack} {rule} {share:g} {seed}")
            yield place, partial(self.row, *cell, seed)

    def row(self, attack: str, rule: str, share: float, seed: int) -> Row:
        """Scores after the last round; ``lost`` tells whether screening cost a bit."""
        options: Row = {"aggregation": rule, "byzantine": max(0.3, share)}
        if rule == UNSCREENED:
            options |= {"aggregation": "mean", "max_norm_ratio": 0.0}
        fed = self.dealt(seed, options)
        if attack == "none":
            return _scores(run_to_end(fed))
        liars = attackers(fed.clients, share, seed)
        run = run_to_end(replace(fed, algorithm=Attacked(attack, liars)))
        row = _scores(run)
        if attack in SCREENED and rule == "mean":
            honest = tuple(c for c in fed.clients if c.name not in liars)
            alone = run_to_end(replace(fed, clients=honest)).last.state
            same = (torch.equal(alone[k], v) for k, v in run.last.state.items())
            row["lost"] = not all(same)
        return row

    @staticmethod
    def page(results: Row) -> str:
        """Attack and rule down, share of attackers across."""
        s = results["settings"]
        head = ["attack", "rule", *(f"{100 * x:g} %" for x in SHARES)]
        body = [
            [*pair, *(_cell(accuracies(results, *pair, share)) for share in SHARES)]
            for pair in dict.fromkeys((a, r) for a, r, _ in cells() if a != "none")
        ]
        lost = [row["lost"] for row in results["runs"].values() if "lost" in row]
        lines = [
            "# Lying clients",
            "",
            f"`python -m benchmarks attacks` on {s['features']}, {s['target']} held "
            f"out: {s['clients']} iid clients of the other domains, {s['rounds']} "
            f"rounds, preset best, seeds {s['seeds']}; "
            f"{measured_on(results['machine'])}.  Accuracy of the held-out domain in "
            "per cent after the last round, ± the 95 % interval over seeds; zero-shot "
            f"{percent(results['zero_shot'])}.  Rules assume 30 % attackers, with "
            "45 % in the last column.",
            "",
            "![attack by rule](attacks.svg)",
            "",
            *table(head, body),
            "",
            f"Screening alone, under the mean, against {', '.join(SCREENED)}: "
            f"{len(lost)} runs, of which {len(lost) - sum(lost)} end in the very bits "
            "of a run without the attackers' clients.",
        ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def picture(results: Row) -> str:
        """The same in colours."""
        plain = mean(accuracies(results, "none", "mean", 0.0)) or 1.0

        def value(attack: str, rule: str, share: float) -> float | None:
            return mean(accuracies(results, attack, rule, share))

        ends = (results["zero_shot"], plain)
        return heat_map(OPEN_TO_ALL, AGGREGATIONS, SHARES[1:], value, ends)


def cells() -> Iterator[tuple[str, str, float]]:
    """Attack, rule and share of every run; 0 attackers once a rule."""
    yield from (("none", rule, 0.0) for rule in AGGREGATIONS)
    yield from itertools.product(OPEN_TO_ALL, AGGREGATIONS, SHARES[1:])
    yield from itertools.product(SCREENED, ("mean",), SHARES[1:])
    yield from itertools.product(("scale-1e6",), (UNSCREENED,), SHARES[1:])


def _scores(run: Ended) -> Row:
    return {
        "target": run.result.target,
        "clients": run.result.mean_test,
        "quarantined": run.last.progress.quarantined,
    }


def accuracies(results: Row, attack: str, rule: str, share: float) -> list[float]:
    """Of the held-out domain, a value a seed; nobody attacks where the share is 0."""
    if not share:
        attack, rule = "none", rule.partition(",")[0]
    keys = (f"{attack} {rule} {share:g} {s}" for s in results["settings"]["seeds"])
    runs = results["runs"]
    return [runs[key]["target"] for key in keys if key in runs]


def _cell(values: Sequence[float]) -> str:
    half = ci95(values)
    return percent(mean(values)) + (f" ± {100 * half:.1f}" if half is not None else "")


# ------------------------------------------------------------------------------ picture

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
    place = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
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


def main(argv: Sequence[str] | None = None) -> None:
    run_study(Attacks, __doc__, argv, rounds=1, clients=8)
