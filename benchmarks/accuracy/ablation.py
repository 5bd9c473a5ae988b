"""What do FedCLIP's hyper-parameters cost on a domain that no client has?

    python -m benchmarks ablation --features DIR

Settings are chosen for each target by its source clients' validation rows alone, as
in DomainBed (Gulrajani and Lopez-Paz 2021, arXiv 2007.01434, "leave one domain out"):
train on all sources but one, score the validation rows of that one, average over the
choice of it.  The target's images take no part.  Every setting is also run on the
target itself, with several seeds.  Settings without a fused kernel train by autograd,
some five times slower: they run for --eager-rounds, beside `paper` and `best` for as
many.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

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
from fedclip_plugin.data.partition import paper_split
from fedclip_plugin.federation.evaluation import score_target, score_zero_shot
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.stats import ci95, mean

Change = dict[str, Any]
SETTINGS: tuple[Change, ...] = (
    {},
    {"weight_decay": 0.0},
    BEST,
    {"weight_decay": 0.0, "lr": 5e-4},
    {**BEST, "logit_scale": 10.0},
    {**BEST, "logit_scale": 5.0},
    {**BEST, "logit_scale": 2.5},
)
EAGER: tuple[Change, ...] = (
    {},
    BEST,
    {**BEST, "loss": "class"},
    {**BEST, "adapter": "residual"},
    {**BEST, "adapter": "bottleneck"},
    {**BEST, "side": "text"},
    {**BEST, "side": "both"},
    {"weight_decay": 0.2, "lr": 2e-4, "optimizer": "adamw"},
    {"weight_decay": 0.0, "lr": 0.1, "optimizer": "sgd"},
    {**BEST, "optimizer_state": "keep"},
)
FLAGS = {"logit_scale": "train_logit_scale"}  # where the option is named otherwise


class Ablation(Study):
    """A row a setting: by its sources' validation rows, and on the targets."""

    name = "ablation"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Rounds of the slower settings."""
        parser.add_argument("--eager-rounds", type=int, default=5)

    def facts(self) -> Row:
        """With the accuracy of zero-shot on every domain."""
        zero_shot = {}
        for target in self.features.domains:
            fed = federation(self, target, 0, {"rounds": 1})
            zero_shot[target] = score_zero_shot(fed.clients, fed.target, fed.task)
        found = {target: scores["target"] for target, scores in zero_shot.items()}
        return super().facts() | {"seeds": self.args.seeds, "zero_shot": found}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every setting with its rounds."""
        jobs = [(change, self.args.eager_rounds) for change in EAGER]
        jobs += [(change, self.args.rounds) for change in SETTINGS]
        for change, rounds in jobs:
            row = {"change": change, "rounds": rounds, "seeds": self.args.seeds}
            options = {FLAGS.get(name, name): value for name, value in change.items()}
            yield ("settings", row), partial(self.setting, options | {"rounds": rounds})

    def setting(self, options: Change) -> Row:
        """Scores of the best rounds; a list over seeds for each target."""
        chosen_by = {t: self.source_validation(t, options) for t in self.domains}
        targets: dict[str, list[float | None]] = {}
        clients, bytes_up = [], 0
        for target, seed in itertools.product(self.domains, self.args.seeds):
            run = run_to_end(federation(self, target, seed, options))
            targets.setdefault(target, []).append(run.best.target)
            clients.append(run.best.mean_test)
            bytes_up = run.last.progress.bytes_up // run.last.progress.round
        return {
            "source_validation": chosen_by,
            "targets": targets,
            "clients": mean(clients),
            "bytes_up_a_round": bytes_up,
        }

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the features."""
        return self.features.domains

    def source_validation(self, target: str, options: Change) -> float | None:
        """Mean accuracy on a target's sources, each held out while the others train."""
        scores = []
        for held in self.domains:
            if held == target:
                continue
            train = tuple(d for d in self.domains if d not in (target, held))
            some = replace(self.features, domains=(*train, held))
            fed = federation(self, held, 0, options, some)
            assert fed.target is not None
            rows = torch.from_numpy(paper_split(len(fed.target), 0).val)
            best = run_to_end(fed).last.best
            score = score_target(fed.algorithm, best, fed.target[rows], fed.task)
            scores.append(score or 0.0)
        return mean(scores)

    @staticmethod
    def page(results: Row) -> str:
        """A table for each number of rounds."""
        lines = [
            "# Ablation",
            "",
            f"`python -m benchmarks ablation --features DIR` on {results['features']}: "
            f"seeds {results['seeds']}; {measured_on(results['machine'])}.  Accuracy "
            "in per cent of the best round.  *Source validation* decides: the mean "
            "over targets of what their source clients alone say (leave one source "
            "out, seed 0); the target's images take no part.  ± is the 95 % interval "
            "over seeds.",
        ]
        rows = results["settings"]
        for rounds in sorted({row["rounds"] for row in rows}, reverse=True):
            some = [row for row in rows if row["rounds"] == rounds]
            lines += ["", f"## {rounds} rounds", ""]
            lines += _table(some, results["zero_shot"])
        return "\n".join(lines) + "\n"


def _label(change: Change) -> str:
    return ", ".join(f"{k.replace('_', '-')} {v}" for k, v in change.items()) or "paper"


def _table(rows: list[Row], zero_shot: dict[str, float]) -> list[str]:
    domains = list(zero_shot)
    head = ["setting", "source validation", *domains, "mean", "clients"]
    head.append("below zero-shot")
    base = [percent(zero_shot[domain]) for domain in domains]
    body = [["zero-shot", "", *base, percent(mean(zero_shot.values())), "", ""]]
    for row in rows:
        half = ci95(mean(seed) for seed in zip(*row["targets"].values()))
        name = _label(row["change"])
        name += " (`--preset best`)" if row["change"] == BEST else ""
        means = {domain: mean(row["targets"][domain]) for domain in domains}
        below = [d for d in domains if (means[d] or 0.0) < zero_shot[d]]
        body.append(
            [
                *(name, percent(mean(row["source_validation"].values()))),
                *map(percent, means.values()),
                with_half(mean(means.values()), half, " ± "),
                *(percent(row["clients"]), ", ".join(below) or "-"),
            ]
        )
    lines = [*table(head, body), "", "Chosen for each target:", ""]
    for domain in domains:
        best = max(rows, key=lambda r: r["source_validation"][domain])
        score = percent(mean(best["targets"][domain]))
        lines.append(f"- {domain}: {_label(best['change'])} -> {score}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    run_study(Ablation, __doc__, argv, eager_rounds=1)
