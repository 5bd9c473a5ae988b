"""What the CUDA kernels are compared with.  Needs only torch; runs on any device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedclip_plugin import ops
from fedclip_plugin.bench import rivals as on_cpu
from fedclip_plugin.bench.rivals import ADAM, Run, eager_loss, gate
from fedclip_plugin.bench.timing import Timing

__all__ = ["Run", "Timing", "gate"]
CLASSES = 7
Client = dict[str, Any]


def wait(device: str) -> None:
    """Until the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def interleave(
    candidates: Mapping[str, Run], rounds: int, per_call: int, device: str
) -> dict[str, Timing]:
    """Each candidate once a round, from an idle device to an idle device."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():  # warm up: compile, allocate, fill caches
        for _ in range(3):
            run()
        wait(device)
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    unit = 1e6 / per_call
    return {k: Timing(min(v) * unit, median(v) * unit) for k, v in seconds.items()}


def make_adapter(dim: int, device: str) -> nn.Sequential:
    return on_cpu.make_adapter(dim).to(device)


def make_client(
    dim: int, batch: int, steps: int, device: str, seed: int = 0, text: Any = None
) -> Client:
    """One client's data and state for `steps` batches."""
    rows = batch * steps
    torch.manual_seed(seed)
    params = [p.detach().clone() for p in make_adapter(dim, device).parameters()]
    if text is None:
        text = F.normalize(torch.randn(CLASSES, dim), dim=1).to(device)
    return {
        "x": (torch.randn(rows, dim) * 0.3).to(device),
        "y": torch.randint(0, CLASSES, (rows,)).to(device),
        "text": text,
        "perm": torch.randperm(rows).to(device),
        "params": params,
        "exp_avg": [torch.zeros_like(p) for p in params],
        "exp_avg_sq": [torch.zeros_like(p) for p in params],
    }


def ours(clients: Sequence[Client], batch: int, bf16: bool = False) -> Run:
    """A round of these clients in one call."""
    hyper = ops.Hyperparameters(batch, *ADAM, "bf16" if bf16 else "fp32")
    names = ops.LocalClient._fields[:-1]  # of the first step
    everyone = [ops.LocalClient(*(c[name] for name in names)) for c in clients]
    return lambda: ops.local_round(everyone, clients[0]["text"], hyper)


def _adam(adapter: nn.Module, **options: bool) -> torch.optim.Adam:
    lr, beta1, beta2, eps, decay, _ = ADAM
    return torch.optim.Adam(
        adapter.parameters(), lr, (beta1, beta2), eps, decay, **options
    )


def eager(client: Client, batch: int, mode: str | None = None, **adam: bool) -> Run:
    """The authors' local training on features; `mode` of torch.compile, if any."""
    x, y, text = client["x"], client["y"], client["text"]
    adapter = make_adapter(x.shape[1], str(x.device))
    optimizer = _adam(adapter, **adam)
    loss = torch.compile(eager_loss, mode=mode) if mode else eager_loss
    batches = client["perm"].split(batch)

    def run() -> None:
        for rows in batches:
            optimizer.zero_grad()
            loss(adapter, x[rows], text[y[rows]]).backward()
            optimizer.step()

    return run


def whole_step_graph(client: Client, batch: int) -> Run:
    """Compiled loss, backward and fused Adam in one CUDA graph, replayed each step."""
    x, y, text = client["x"], client["y"], client["text"]
    adapter = make_adapter(x.shape[1], str(x.device))
    optimizer = _adam(adapter, fused=True, capturable=True)
    loss = torch.compile(eager_loss)
    batches = client["perm"].split(batch)
    rows = batches[0].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss(adapter, x[rows], text[y[rows]]).backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def run() -> None:
        for next_rows in batches:
            rows.copy_(next_rows)
            graph.replay()

    return run


def possible(candidates: Mapping[str, Callable[[], Run]]) -> tuple[dict[str, Run], str]:
    """Those that can be made and run here, and a note on the others."""
    found, notes = {}, []
    for name, make in candidates.items():
        try:
            run = make()
            run()
        except Exception as error:  # of a compiler or a driver: many kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes.append(f"{name}: {first[:160]}")
            with contextlib.suppress(RuntimeError):
                wait("cuda" if torch.cuda.is_available() else "cpu")
        else:
            found[name] = run
    return found, "; ".join(notes)


State = list[Tensor]


def personalizedfl_mean(xs: State, shares: Sequence[float]) -> Tensor:
    """PersonalizedFL: a product and a sum for each client."""
    total = torch.zeros_like(xs[0])
    for x, share in zip(xs, shares):
        total += share * x
    return total


def add_mean(xs: State, shares: Sequence[float]) -> Tensor:
    """The best that plain PyTorch does: `add_` with a factor."""
    total = xs[0] * shares[0]
    for x, share in zip(xs[1:], shares[1:]):
        total.add_(x, alpha=share)
    return total
