"""Local steps of FACMIC's released code and of ours, from one state: how far apart?

    FACMIC_HOME=DIR python -m benchmarks vs-facmic [--features DIR] [--steps N...]

``FACMIC_HOME`` is a checkout of AIPMLab/FACMIC (MIT).  Both sides get the same adapter,
the same batches of features and the same frozen CLIP, which is the identity on them;
theirs runs as it is (``run_facmic.py``), ours is ``--alg facmic --facmic-unlabelled
plain --facmic-ramp 0``, which is what their training step computes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.command import as_json, build_parser, parse, random_features, save
from benchmarks.command import table as lines_of
from fedclip_plugin.algorithms import Client, with_values
from fedclip_plugin.algorithms.aligned import unlabelled_batches
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.algorithms.facmic import Facmic
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.wire.update import State

HOME = "FACMIC_HOME"
SCRIPT = Path(__file__).with_name("run_facmic.py")
RELEASED = {"unlabelled": "plain", "ramp": 0}


def federation(features: FeatureSet, target: str, batch: int) -> Federation:
    """Clients that align to ``target`` as the released code does."""
    config = RunConfig("facmic", data=DataConfig(transductive=True))
    values = {**Facmic.defaults, "batch_size": batch}
    config = with_values(config, {**values, **RELEASED})
    return build_federation(features, config, target, seed=0)


def ours(fed: Federation, client: Client) -> State:
    """The adapter after a client's local round."""
    return fed.algorithm.local_train(fed.first, client, fed.task, 1).state


def theirs(home: Path, fed: Federation, client: Client, work: Path) -> State:
    """The same by their code, on the batches that ours takes."""
    task, train = fed.task, client.train
    t = task.train
    others = unlabelled_batches(client, task, 1)
    order = sample_order(len(train), task.seed, 1, client.index, 0)
    sent: dict[str, Tensor] = {"text": task.text}
    sent |= {f"state/{key}": value for key, value in fed.first.items()}
    batches = list(order.split(t.batch_size))
    for i, rows in enumerate(batches):
        sent |= {f"x/{i}": train.x[rows], f"y/{i}": train.y[rows]}
        sent |= {f"other/{i}": next(others)}
    about = {
        "steps": len(batches),
        "logit_scale": task.logit_scale,
        "adam": {
            "lr": t.lr, "betas": [t.beta1, t.beta2], "eps": t.eps,
            "weight_decay": t.weight_decay,
        },
    }  # fmt: skip
    files = work / "input.safetensors", work / "output.safetensors"
    whole = {key: value.contiguous().clone() for key, value in sent.items()}
    save_file(whole, files[0], {"about": json.dumps(about)})
    command = [sys.executable, str(SCRIPT), str(home), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"FACMIC's code failed:\n{done.stderr}")
    return load_file(files[1])


def apart(one: State, other: State) -> float:
    """The largest difference of two states."""
    if one.keys() != other.keys():
        raise SystemExit(f"other keys: {sorted(one.keys() ^ other.keys())}")
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def measure(
    home: Path, features: FeatureSet, steps: Sequence[int], batch: int
) -> list[dict[str, Any]]:
    """A row for each number of steps of the first client; the last domain is held out.

    Raises SystemExit where the client has too few rows.
    """
    target = features.domains[-1]
    fed = federation(features, target, batch)
    rows = []
    for count in steps:
        client = fed.clients[0]
        part = client.train[: count * batch]
        if len(part) < count * batch:
            raise SystemExit(f"{client.name} has no {count * batch} training rows")
        client = replace(client, train=part)
        with tempfile.TemporaryDirectory(prefix="vs-facmic-") as folder:
            found = theirs(home, fed, client, Path(folder))
        mine = ours(fed, client)
        weights = [key for key in mine if "running" not in key]
        rows.append(
            {
                "client": client.name,
                "steps": count,
                "apart": apart(mine, found),
                "moved": apart(
                    {key: mine[key] for key in weights},
                    {key: fed.first[key] for key in weights},
                ),
            }
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The page of the results."""
    head = ["local steps", "largest difference", "largest move of a weight"]
    rows = [
        [str(r["steps"]), f"{r['apart']:.1e}", f"{r['moved']:.1e}"]
        for r in results["rows"]
    ]
    text = [
        "# FACMIC's released code and ours",
        "",
        "`FACMIC_HOME=DIR python -m benchmarks vs-facmic --features DIR`.  Local steps "
        "of batch size "
        f"{results['batch']} from the same adapter, on the same batches of "
        f"{results['data']}, width {results['dim']}; the largest difference of any "
        "number of the state afterwards, running statistics included.",
        "",
        *lines_of(head, rows),
        "",
        f"torch {results['torch']}, {results['date']}; AIPMLab/FACMIC at "
        f"{results['commit']}.",
    ]
    return "\n".join(text) + "\n"


def commit_of(home: Path) -> str:
    """The commit of a checkout, "?" where it is none."""
    command = ["git", "-C", str(home), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "?"
    return done.stdout.strip() or "?"


def home_of_facmic() -> Path:
    """The checkout that FACMIC_HOME names; SystemExit where it is none."""
    set_to = os.environ.get(HOME)
    if not set_to:
        raise SystemExit(f"{HOME} is not set: a checkout of AIPMLab/FACMIC")
    home = Path(set_to).expanduser().resolve()
    if not (home / "adaptation.py").is_file():
        raise SystemExit(f"{HOME}={set_to} holds no adaptation.py")
    return home


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the page; raises SystemExit where their code is not there."""
    parser = build_parser("vs-facmic", __doc__)
    add = parser.add_argument
    add("--features", type=Path, help="a feature directory (default: random features)")
    add("--steps", type=int, nargs="+", default=[1, 10, 20], metavar="N")
    add("--batch-size", type=int, default=32, metavar="N")
    args: argparse.Namespace = parse(parser, argv, steps=[1, 3], batch_size=8)
    home = home_of_facmic()
    made = random_features(1200, ("own", "other")) if args.features is None else None
    features = made or load_features(args.features)
    results = {
        "rows": measure(home, features, args.steps, args.batch_size),
        "batch": args.batch_size,
        "data": args.features.name if args.features else "random features",
        "dim": features.embed_dim,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit_of(home),
    }
    page = markdown(results)
    save(args.out, "vs_facmic", json=as_json(results), md=page)
    print(page)
    return 0
