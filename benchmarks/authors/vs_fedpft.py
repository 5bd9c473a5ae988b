"""Gaussians of FedPFT's baseline in Flower and of ours, of one client: how far apart?

    FLOWER_HOME=DIR python -m benchmarks vs-fedpft [--features DIR]

``FLOWER_HOME`` is a checkout of adap/flower (Apache-2.0) with ``baselines/fedpft``.
Both sides fit the same unit features; theirs runs as it is, and rounds to fp16.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.command import as_json, build_parser, parse, random_features, save
from benchmarks.command import table as lines_of
from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.fedpft import fit
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import build_federation

HOME = "FLOWER_HOME"
SETTINGS = (("spherical", 1), ("diagonal", 1), ("spherical", 3))
THEIRS = {"spherical": "spherical", "diagonal": "diag"}


def their_code(home: Path) -> Any:
    """Their module of Gaussians, which needs no Flower."""
    path = home / "baselines" / "fedpft" / "fedpft" / "utils.py"
    spec = importlib.util.spec_from_file_location("fedpft_utils", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{HOME}={home} holds no baselines/fedpft")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measure(code: Any, features: FeatureSet) -> list[dict[str, Any]]:
    """A row for each kind of Gaussian: the largest differences over all classes."""
    rows = []
    for covariance, mixtures in SETTINGS:
        values = {"covariance": covariance, "mixtures": mixtures}
        config = with_values(RunConfig("fedpft"), values)
        fed = build_federation(features, config, features.domains[-1], seed=0)
        train = fed.clients[0].train
        z = F.normalize(train.x.double(), dim=1)
        found = code.learn_gmm(
            z.numpy(), train.y.numpy(), mixtures, THEIRS[covariance], fed.task.seed,
            1e-3, 100,
        )  # fmt: skip
        gaps = dict.fromkeys(("means", "variances", "weights"), 0.0)
        for theirs in found:
            part = z[train.y == int(theirs.label)]
            ours = dict(zip(("weights", "means", "variances"), fit(part, fed.task)))
            told = (theirs.weights, theirs.means, theirs.covariances)
            for key, value in zip(("weights", "means", "variances"), told):
                gap = np.abs(ours[key].half().double().numpy() - value.astype(float))
                gaps[key] = max(gaps[key], float(gap.max()))
        rows.append({**values, "classes": len(found), **gaps})
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The page of the results."""
    head = ["covariance", "mixtures", "classes", "means", "variances", "weights"]
    rows = [
        [str(r[key]) for key in head[:3]] + [f"{r[key]:.1e}" for key in head[3:]]
        for r in results["rows"]
    ]
    text = [
        "# FedPFT's Gaussians in Flower's baseline and ours",
        "",
        "`FLOWER_HOME=DIR python -m benchmarks vs-fedpft --features DIR`.  Those "
        f"the first client of {results['data']}, width {results['dim']}, in fp16; "
        "the largest difference of any number.  scikit-learn, which fits theirs, adds "
        "1e-6 to every variance; ours adds it to mixtures alone.",
        "",
        *lines_of(head, rows),
        "",
        f"torch {results['torch']}, {results['date']}.",
    ]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the page; raises SystemExit where their code is not there."""
    parser = build_parser("vs-fedpft", __doc__)
    parser.add_argument(
        "--features", type=Path, help="a feature directory (default: random features)"
    )
    args: argparse.Namespace = parse(parser, argv)
    set_to = os.environ.get(HOME)
    if not set_to:
        raise SystemExit(f"{HOME} is not set: a checkout of adap/flower")
    code = their_code(Path(set_to).expanduser().resolve())
    made = random_features(1200, ("own", "other")) if args.features is None else None
    features = made or load_features(args.features)
    results = {
        "rows": measure(code, features),
        "data": args.features.name if args.features else "random features",
        "dim": features.embed_dim,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    page = markdown(results)
    save(args.out, "vs_fedpft", json=as_json(results), md=page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
