"""A round of FedML's simulation in one process: FedAvgAPI as it comes, and FedCLIPAPI.

    python -m benchmarks fedml-round [--clients 1000] [--rounds 10] [--write]

Local training is a no-op on both sides, and testing is off: what is left is what the
host does for every client (handing out parameters, collecting, averaging).  Both sides
work on an adapter of width 512; ours gets updates that lie in memory of their own, as
trained ones do.  FedAvgAPI screens nothing; FedCLIPAPI is shown as it is, measuring how
far each update moved, and without that (max_norm_ratio 0: NaN and Inf alone).  Needs
fedml, see docs/fedml.md.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.command import build_parser, parse, random_features, save, table
from fedclip_plugin.algorithms import FedClip
from fedclip_plugin.algorithms.adapter import AttentionAdapter
from fedclip_plugin.bench.timing import Timing, interleave, machine
from fedclip_plugin.features.feature_set import save_features
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.wire.update import ClientUpdate, State

DIM = 512


def arguments(clients: int, features: Path, **more: Any) -> Any:
    """FedML's args, as its YAML file would set them."""
    return SimpleNamespace(
        training_type="simulation", backend="sp", dataset="random", model="adapter",
        federated_optimizer="FedCLIP", client_num_in_total=clients,
        client_num_per_round=clients, comm_round=1, epochs=1, batch_size=32,
        learning_rate=5e-5, random_seed=0, using_gpu=False, enable_wandb=False,
        frequency_of_the_test=10**9, run_id="0", rank=0,
        fedclip_features=str(features), fedclip_partition="iid", **more,
    )  # fmt: skip


def fedavg_as_it_comes(args: Any, dataset: Any) -> Any:
    from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI

    api = FedAvgAPI(args, torch.device("cpu"), dataset, AttentionAdapter(DIM))
    api.model_trainer.train = lambda *_: None
    api._local_test_on_all_clients = lambda round_idx: None
    return api.train


def some_updates(dataset: Any, state: State) -> list[ClientUpdate]:
    """What the clients send: each in memory of its own, each a little way off."""
    clients = [loader.client for loader in dataset[5].values()]
    return [
        ClientUpdate(c.name, {k: v + 1e-3 for k, v in state.items()}, len(c.train))
        for c in clients
    ]


def fedclip(args: Any, dataset: Any, updates: list[ClientUpdate]) -> Any:
    model = fedml_host.create_model(args)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    api = fedml_host.FedCLIPAPI(args, torch.device("cpu"), dataset, model)
    FedClip.local_round = lambda *_: updates  # type: ignore[method-assign]
    args.comm_round = 3

    def one_round() -> None:
        args.round_idx = 1  # neither first nor last: no testing
        api._train_round(1)
        model.load_state_dict(start)

    return one_round


def check(dataset: Any, args: Any) -> None:
    """Both sides average: of equal updates the mean is what they are."""
    sizes = set(dataset[4].values())
    if len(dataset[4]) != args.client_num_in_total or 0 in sizes:
        raise SystemExit(f"expected clients with rows, got sizes {sorted(sizes)}")


def rows_of(times: dict[str, Timing]) -> list[list[str]]:
    """Milliseconds, and how many times less than the first."""
    first = next(iter(times.values()))
    return [
        [
            *(name, f"{t.minimum / 1e3:.0f}", f"{t.median / 1e3:.0f}"),
            f"{first.minimum / t.minimum:.1f}, {first.median / t.median:.1f}",
        ]
        for name, t in times.items()
    ]


def report(times: dict[str, Timing], clients: int, rounds: int) -> str:
    """The page."""
    found = ", ".join(f"{key} {value}" for key, value in machine().items())
    size = sum(v.numel() for v in AttentionAdapter(DIM).state_dict().values())
    head = ["", "min, ms", "median, ms", "times less (min, median)"]
    rows = "\n".join(table(head, rows_of(times)))
    return (
        f"# FedML sp, a round of {clients} clients\n\n"
        f"`python -m benchmarks fedml-round --clients {clients} --rounds {rounds} "
        f"--write`: adapter of width {DIM} ({size:,} parameters), fedml "
        f"{fedml_host.VERSION},\nno-op local training, no testing, {rounds} rounds of "
        f"each in turn, {torch.get_num_threads()} threads.\n\n{found}\n\n{rows}\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Time the three in turn."""
    parser = build_parser("fedml-round", __doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parse(parser, argv, clients=10, rounds=2)
    clients = options.clients
    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) / "random"
        save_features(random_features(5 * clients), features)
        args = arguments(clients, features)
        fedml_host.register()
        from fedml import mlops

        mlops.pre_setup(args)
        logging.disable(logging.INFO)
        dataset, _ = fedml_host.load(args)
        check(dataset, args)
        own = arguments(clients, features)
        free = arguments(clients, features, fedclip_max_norm_ratio=0)
        state = dict(fedml_host.create_model(args).state_dict())
        updates = some_updates(dataset, state)
        candidates = {
            "FedAvgAPI": fedavg_as_it_comes(args, dataset),
            "FedCLIPAPI": fedclip(own, dataset, updates),
            "FedCLIPAPI, max_norm_ratio 0": fedclip(free, dataset, updates),
        }
        times = interleave(candidates, options.rounds)
    page = report(times, clients, options.rounds)
    save(options.out, "fedml-round", md=page)
    print(page)
