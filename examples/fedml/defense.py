"""FedML's own defenses and privacy around FedCLIP's adapters: python defense.py

`defense.yaml` and variations of it, each a run of `fedclip fedml` in a process of its
own; the table at the end has the accuracies of the best and of the last round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
DEFENSE = {"enable_defense": True}
NO_DEFENSE = {"enable_defense": False}
NO_ATTACK = {"enable_attack": False, **NO_DEFENSE}
# Gaussian noise of sqrt(2 ln(1.25 / delta)) * sensitivity / epsilon on every weight
DP = {
    "enable_dp": True,
    "mechanism_type": "gaussian",
    "epsilon": 0.9,
    "delta": 1e-5,
    "sensitivity": 1e-4,
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "honest clients": NO_ATTACK,
    "2 of 8 lie": NO_DEFENSE,
    "2 of 8 lie, Multi-Krum": {},
    "2 of 8 lie, coordinate median": {**DEFENSE, "defense_type": "wise_median"},
    "2 of 8 lie, clipped updates": {
        **DEFENSE,
        "defense_type": "norm_diff_clipping",
        "norm_bound": 0.1,
    },
    "honest clients, central DP noise": {**NO_ATTACK, **DP, "dp_solution_type": "cdp"},
    "honest clients, local DP noise": {**NO_ATTACK, **DP, "dp_solution_type": "ldp"},
}


def run(changes: dict[str, Any], folder: Path, rounds: int) -> tuple[float, float]:
    """One run; test accuracy, mean over clients, of the best and of the last round."""
    sections = yaml.safe_load((HERE / "defense.yaml").read_text(encoding="utf-8"))
    keys = {key: value for part in sections.values() for key, value in part.items()}
    keys |= {**changes, "comm_round": rounds, "fedclip_out": str(folder / "out")}
    folder.mkdir()
    cf = folder / "fedml_config.yaml"
    cf.write_text(yaml.safe_dump({"train_args": keys}), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "fedclip_plugin.cli",
        "fedml",
        "--cf",
        str(cf),
    ]
    done = subprocess.run(
        [*command, "--offline"], capture_output=True, text=True, cwd=folder
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    best = json.loads((folder / "out" / "summary.json").read_text())["best_round"]
    return found[best - 1]["mean_test"], found[-1]["mean_test"]


def main() -> None:
    """Run the variations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    width = max(map(len, VARIATIONS))
    print(f"{'':{width}}  best round  last round   (clients' test accuracy in %)")
    with tempfile.TemporaryDirectory(prefix="fedclip-defense-") as work:
        for number, (name, changes) in enumerate(VARIATIONS.items()):
            best, last = run(changes, Path(work) / str(number), rounds)
            print(f"{name:{width}}  {100 * best:10.2f}  {100 * last:10.2f}", flush=True)


if __name__ == "__main__":
    main()
