"""One timed run of ours in a process of its own: ``FILE.json``.

FILE holds the options that ``main`` reads; the timings are printed as one JSON line.
The path is that of ``fedclip run``: ``obtain_features`` from an empty cache, then
``run_experiment``, with checkpoints, metrics and reports.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.features import obtain
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.runs import experiment


def main() -> None:
    options = json.loads(Path(sys.argv[1]).read_text())
    config = RunConfig(
        model=ModelConfig(**options["model"]),
        data=DataConfig(dataset="pacs", root=options["root"]),
        train=TrainConfig(rounds=options["rounds"]),
    )
    marks: list[tuple[int, float]] = []  # images encoded by then, seconds

    def mark(what: str, done: int, total: int) -> None:
        if what == "encode":
            marks.append((done, time.perf_counter()))

    start = time.perf_counter()
    features, stats = obtain.obtain_features(config, mark)
    encode = time.perf_counter() - start
    start = time.perf_counter()
    features = resized(features, options["sizes"])
    unpaid = time.perf_counter() - start  # no part of a real run
    out = Path(options["out"])
    one = replace(config, data=replace(config.data, targets=features.domains[:1]))
    result = {
        "precision": stats.precision,
        "encoded": stats.encoded,
        "encode": encode,
        "images_per_second": steady_rate(marks),
        "one": timed_run(one, features, stats, out / "one"),
        "all": timed_run(config, features, stats, out / "all"),
        "unpaid": unpaid,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


def steady_rate(marks: list[tuple[int, float]]) -> float | None:
    """Images a second after the first batch, which waits for the model."""
    if len(marks) < 2:
        return None
    (first, start), (last, end) = marks[0], marks[-1]
    return (last - first) / (end - start)


def resized(features: FeatureSet, sizes: dict[str, int]) -> FeatureSet:
    """The features with each domain's rows repeated, or cut, to ``sizes``."""
    rows = {d: torch.arange(sizes[d]) % len(features.label[d]) for d in sizes}
    return replace(
        features,
        image={d: features.image[d][rows[d]] for d in features.domains},
        label={d: features.label[d][rows[d]] for d in features.domains},
    )


def timed_run(
    config: RunConfig, features: FeatureSet, stats: Any, out: Path
) -> dict[str, Any]:
    """Seconds of a whole run, and of each round of each held-out domain."""
    rounds: dict[str, list[float]] = {}
    last = time.perf_counter()

    def on_round(leaf: Any, standing: Any) -> None:
        nonlocal last
        now = time.perf_counter()
        if standing.result is not None:
            rounds.setdefault(leaf.target, []).append(now - last)
        last = now

    start = time.perf_counter()
    experiment.run_experiment(config, features, stats, out, on_round=on_round)
    return {"seconds": time.perf_counter() - start, "rounds": rounds}


if __name__ == "__main__":
    main()
