"""A round of FedML's simulation in one process: FedAvgAPI as it comes, and FedCLIPAPI.

    python benchmarks/fedml_round.py [--clients 1000] [--rounds 10] [--write]

Local training is a no-op on both sides, and testing is off: what is left is what the
host does for every client (handing out parameters, collecting, averaging).  Both sides
work on an adapter of width 512; ours gets updates that lie in memory of their own, as
trained ones do.  FedAvgAPI screens nothing; FedCLIPAPI is shown as it is, measuring how
far each update moved, and without that (max_norm_ratio 0: NaN and Inf alone).  Needs
fedml, see docs/fedml.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from timing import Timing, interleave, machine
from torch.nn.functional import normalize

from fedclip_plugin.algorithms import FedClip
from fedclip_plugin.algorithms.adapter import AttentionAdapter
from fedclip_plugin.features.feature_set import FeatureSet, save_features
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.wire.update import ClientUpdate, State

DIM, CLASSES = 512, 7
RESULT = Path(__file__).parents[1] / "results" / "fedml-round.md"


def write_features(directory: Path, rows: int) -> None:
    """Random features: nothing is trained on them."""
    generator = torch.Generator().manual_seed(0)
    image = {"a": normalize(torch.randn(rows, DIM, generator=generator))}
    label = {"a": torch.randint(0, CLASSES, (rows,), generator=generator)}
    text = normalize(torch.randn(CLASSES, DIM, generator=generator))
    names = tuple(f"class{i}" for i in range(CLASSES))
    save_features(
        FeatureSet(
            "random", "none", "a {}", names, ("a",), 100.0, DIM, "random", image, label,
            text,
        ),
        directory,
    )  # fmt: skip


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


def table(times: dict[str, Timing]) -> str:
    first = next(iter(times.values()))
    lines = [
        "| | min, ms | median, ms | times less (min, median) |",
        "|---|---|---|---|",
    ]
    for name, t in times.items():
        less = f"{first.minimum / t.minimum:.1f}, {first.median / t.median:.1f}"
        figures = f"{t.minimum / 1e3:.0f} | {t.median / 1e3:.0f}"
        lines.append(f"| {name} | {figures} | {less} |")
    return "\n".join(lines)


def report(times: dict[str, Timing], clients: int, rounds: int) -> str:
    found = ", ".join(f"{key} {value}" for key, value in machine().items())
    size = sum(v.numel() for v in AttentionAdapter(DIM).state_dict().values())
    return (
        f"# FedML sp, a round of {clients} clients\n\n"
        f"`python benchmarks/fedml_round.py --clients {clients} --rounds {rounds} "
        f"--write`: adapter of width {DIM} ({size:,} parameters), fedml "
        f"{fedml_host.VERSION},\nno-op local training, no testing, {rounds} rounds of "
        f"each in turn, {torch.get_num_threads()} threads.\n\n{found}\n\n"
        f"{table(times)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", action="store_true", help=f"to {RESULT.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder) / "random", 5 * options.clients)
        folder_of = Path(folder) / "random"
        args = arguments(options.clients, folder_of)
        fedml_host.register()
        from fedml import mlops

        mlops.pre_setup(args)
        logging.disable(logging.INFO)
        dataset, _ = fedml_host.load(args)
        check(dataset, args)
        own = arguments(options.clients, folder_of)
        free = arguments(options.clients, folder_of, fedclip_max_norm_ratio=0)
        state = dict(fedml_host.create_model(args).state_dict())
        updates = some_updates(dataset, state)
        candidates = {
            "FedAvgAPI": fedavg_as_it_comes(args, dataset),
            "FedCLIPAPI": fedclip(own, dataset, updates),
            "FedCLIPAPI, max_norm_ratio 0": fedclip(free, dataset, updates),
        }
        times = interleave(candidates, options.rounds)
    text = report(times, options.clients, options.rounds)
    print(text)
    if options.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
