"""Three sites and a server without data, each on a machine of its own, in each host.

    python -m benchmarks host-sites fedml --features DIR --write
    python -m benchmarks host-sites flower --features DIR --write
    python -m benchmarks host-sites nvflare --features DIR --write

Each in the environment of its host.  A machine is a network namespace (Linux, root).
A site has the features of one domain, in a folder that nobody else is told of; the
oracle is `fedclip run` over all of them.  All speak TLS.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.command import (
    ROOT,
    as_json,
    build_parser,
    measured_on,
    parse,
    random_features,
    save,
    table,
)
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.features.feature_set import (
    FeatureSet,
    load_features,
    save_features,
)
from fedclip_plugin.storage.tensors import read_tensors
from tests.federation.toy import own_directories
from tests.registry.machines import Machine, enter, machines

NAME = "host-sites"
SITES = 3
LR = 0.001
SECONDS = 600.0
Row = dict[str, Any]
Play = Callable[[Path, Sequence[Machine], Sequence[Path], int], Path]


def fedml(
    folder: Path, network: Sequence[Machine], own: Sequence[Path], rounds: int
) -> Path:
    """Cross-silo over gRPC; the directory of the run."""
    from tests.registry.fedml.runs import environment, silo_commands, write_yaml

    lines = [f"{n},{n},{m.ipv4},{8890 + n}" for n, m in enumerate(network)]
    csv = folder / "grpc_ipconfig.csv"
    csv.write_text("\n".join(["eid,rank,grpc_server_ip,grpc_server_port", *lines, ""]))
    script = str(ROOT / "examples" / "fedml" / "make_certificates.sh")
    tls = folder / "tls"
    subprocess.run([script, str(csv), str(tls)], check=True, capture_output=True)
    values = {
        "training_type": "cross_silo", "scenario": "horizontal", "backend": "GRPC",
        "random_seed": 0, "dataset": "sites", "federated_optimizer": "FedCLIP",
        "client_num_in_total": SITES, "client_num_per_round": SITES,
        "comm_round": rounds, "epochs": 1, "learning_rate": LR, "using_gpu": False,
        "enable_tracking": False, "fedclip_private_data": True, "fedclip_out": "out",
        "grpc_ipconfig_path": str(csv), "fedclip_tls_ca": str(tls / "ca.pem"),
        "fedclip_tls_cert": str(tls / "rank-{rank}.pem"),
        "fedclip_tls_key": str(tls / "rank-{rank}.key"),
    }  # fmt: skip
    commands = silo_commands(write_yaml(folder / "config.yaml", values), SITES + 1)
    started = []
    try:
        for rank, command in enumerate(commands):
            env = environment(folder)
            if rank:
                env["FEDCLIP_FEATURES"] = str(own[rank - 1])
            with (folder / f"{rank}.log").open("wb") as log:
                process = subprocess.Popen(
                    network[rank].command(command),
                    cwd=folder, env=env, stdout=log, stderr=log,
                )  # fmt: skip
            started.append(process)
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(codes):
        raise SystemExit((folder / "0.log").read_text())
    return folder / "out"


def flower(
    folder: Path, network: Sequence[Machine], own: Sequence[Path], rounds: int
) -> Path:
    """A SuperLink and SuperNodes; the directory of the run."""
    from tests.registry.flower.deployment import EXAMPLE, load_example

    deploy: Any = load_example()
    ports = itertools.count(9100)
    deploy.HOST, deploy.free_port = network[0].ipv4, lambda: next(ports)
    words = itertools.count()

    class Apart(deploy.Deployment):  # type: ignore[misc]
        """Each process on its machine."""

        def _start(self, name: str, *command: object) -> Any:
            place = network[next(words)]  # the SuperLink, then the nodes in order
            return super()._start(name, *place.command([str(w) for w in command]))

    configs = [f'partition-id={i} features="{path}"' for i, path in enumerate(own)]
    run_config = (
        f'dataset="sites" num-server-rounds={rounds} lr={LR} out="{folder / "out"}" '
        f"min-available-nodes={SITES} local-epochs=1 weight-decay=0.2 batch-size=32"
    )
    with Apart(folder, configs) as deployment:
        command = ["flwr", "run", str(EXAMPLE), "here", "--stream"]
        done = subprocess.run(
            network[0].command([*command, "--run-config", run_config]),
            env=deployment.environment, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    if not (folder / "out" / "summary.json").is_file():
        raise SystemExit(done.stdout + done.stderr)
    return folder / "out"


def nvflare(
    folder: Path, network: Sequence[Machine], own: Sequence[Path], rounds: int
) -> Path:
    """A provisioned server and sites; the directory of the run."""
    from fedclip_plugin.registry import nvflare_host
    from tests.registry.nvflare.deployment import load_example

    deploy: Any = load_example()
    deploy.HOST = network[0].ipv4
    sites = {f"site-{n}": {"features": str(path)} for n, path in enumerate(own, 1)}
    places: dict[str, Machine] = dict(zip([deploy.HOST, *sites], network))

    class Apart(deploy.Deployment):  # type: ignore[misc]
        """Each process on its machine."""

        def command(self, name: str) -> list[str]:
            words = super().command(name)
            there: list[str] = places[name].command(words)
            return there

    options = {
        "dataset": "sites", "rounds": rounds, "lr": LR, "min-sites": SITES,
        "out": str(folder / "out"),
    }  # fmt: skip
    nvflare_host.write_job(folder / "job", options)
    failed: list[BaseException] = []

    def play() -> None:
        enter(network[0].path)  # whoever submits is at the server
        try:
            with Apart(folder, sites) as deployment:
                status = deployment.ended(deployment.submit(folder / "job"))
                if status != "FINISHED:COMPLETED":
                    raise SystemExit(status + deployment.log(deploy.HOST))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=play)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return folder / "out"


HOSTS: dict[str, tuple[str, Play]] = {
    "fedml": ("FedML 0.9.6, cross-silo", fedml),
    "flower": ("Flower, SuperLink and SuperNodes", flower),
    "nvflare": ("NVFlare 2.9, provisioned", nvflare),
}


def embedded(folder: Path, features: FeatureSet, rounds: int) -> Path:
    """``fedclip run`` over the features of all sites; the directory of the run."""
    from fedclip_plugin.cli import main as fedclip

    save_features(features, folder / "pooled")
    words = ["run", "--features", str(folder / "pooled"), "--target", "none"]
    words += ["--rounds", str(rounds), "--lr", str(LR), "--seed", "0", "--quiet"]
    if fedclip([*words, "--out", str(folder / "out")]):
        raise SystemExit("the embedded run failed")
    return folder / "out"


def measure(host: str, features: FeatureSet, rounds: int) -> Row:
    """Accuracies, bytes, and how far the adapter is from the embedded engine's."""
    with tempfile.TemporaryDirectory(prefix="fedclip-sites-") as name:
        folder = Path(name)
        (folder / "host").mkdir()
        own = own_directories(folder / "own", features)
        with machines(SITES + 1) as network:
            out = HOSTS[host][1](folder / "host", network, own, rounds)
            traffic = network[0].traffic()
        whole = embedded(folder, features, rounds)
        states = [read_tensors(p / "adapter.safetensors")[0] for p in (out, whole)]
        summary = json.loads((out / "summary.json").read_text())
        lines = (out / "metrics.jsonl").read_text().splitlines()
    assert states[0].keys() == states[1].keys()
    apart = max(float((states[0][k] - v).abs().max()) for k, v in states[1].items())
    sides = {
        kind: {client: s["test"] if isinstance(s, Mapping) else s
               for client, s in summary[kind]["clients"].items()}
        for kind in ("zero_shot", "result")
    }  # fmt: skip
    return {
        "rounds": len(lines), "best_round": summary["best_round"], "apart": apart,
        "bytes": [summary["communication"][f"bytes_{w}"] for w in ("up", "down")],
        "interface": list(traffic), **sides,
    }  # fmt: skip


def report(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    sites = list(next(iter(results["rows"].values()))["result"])

    def cells(scores: Mapping[str, float]) -> list[str]:
        values = [100 * scores[site] for site in sites]
        return [f"{value:.2f}" for value in [*values, sum(values) / len(values)]]

    head = (
        "host", "adapter", *sites, "mean", "bytes up", "down", "into the server",
        "out of it",
    )  # fmt: skip
    first = next(iter(results["rows"].values()))
    lines = [["zero-shot", "-", *cells(first["zero_shot"]), *["-"] * 4]]
    for host, row in results["rows"].items():
        same = f"{row['apart']:.1e} apart" if row["apart"] else "the same values"
        sizes = [f"{size:,}" for size in [*row["bytes"], *row["interface"]]]
        lines.append([HOSTS[host][0], same, *cells(row["result"]), *sizes])
    return f"""# Sites on machines of their own

`python -m benchmarks {NAME} HOST --features DIR --write`, in each host's environment:
{results["what"]}. A server without data and a machine for each of {SITES} sites
(network namespaces on one bridge, TLS), a domain of features each, in a folder that
nobody else is told of; {first["rounds"]} rounds, learning rate {LR}. *Adapter*: beside
that of `fedclip run --target none` over a folder of all. Test accuracy in per cent, of
the best round by validation. *Bytes* are those that the host's binding counts in
its rounds, the last two columns those at the server's network interface
from first to last, headers, TLS and introductions included.

{measured_on(results["machine"])}

{chr(10).join(table(head, lines))}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one host, and write its row beside those of others."""
    parser = build_parser(NAME, __doc__)
    parser.add_argument("host", choices=HOSTS)
    parser.add_argument("--features", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    args = parse(parser, argv, rounds=1)
    if args.features is None:
        features, what = random_features(60, ("a", "b", "c"), 64), "random features"
    else:
        features = first_domains(load_features(args.features))
        what = f"`{args.features.name}`, width {features.embed_dim}"
    row = measure(args.host, features, args.rounds)
    rows = {args.host: row}
    path = None if args.out is None else args.out / f"{NAME}.json"
    if path is not None and path.is_file():
        rows = {**json.loads(path.read_text())["rows"], **rows}
    rows = {host: rows[host] for host in HOSTS if host in rows}
    results = {"machine": machine(), "what": what, "rows": rows}
    page = report(results)
    save(args.out, NAME, json=as_json(results), md=page)
    print(page)


def first_domains(features: FeatureSet) -> FeatureSet:
    """The first of its domains, one for each site."""
    names = features.domains[:SITES]
    image, label = ({d: p[d] for d in names} for p in (features.image, features.label))
    return replace(features, domains=names, image=image, label=label)
