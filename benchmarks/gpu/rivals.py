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
    """Each candidate once a round, from an idle device to an idle device.

    Another one is first in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():  # warm up: compile, allocate, fill caches
        for _ in range(3):
            run()
        wait(device)
    order = list(candidates.items())
    for turn in range(rounds):
        first = turn % len(order)
        for name, run in order[first:] + order[:first]:
            start = time.perf_counter()
            run()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    unit = 1e6 / per_call
    return {k: Timing(min(v) * unit, median(v) * unit) for k, v in seconds.items()}


def back_to_back(run: Run, calls: int, device: str) -> float:
    """Microseconds of a call where the next one need not wait for its end."""
    run()
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return 1e6 * (time.perf_counter() - start) / calls


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
        loss(adapter, x[rows], text[y[rows]]).backward()
        optimizer.step()

    captured = Captured(step, optimizer)

    def run() -> None:
        for next_rows in batches:
            rows.copy_(next_rows)
            captured.replay()

    return run


class Captured:
    """A step as one CUDA graph; its gradients are written, not added to others.

    The graph owns none of the memory that it writes to: the step and the optimizer do.
    """

    def __init__(
        self, step: Callable[[], None], optimizer: torch.optim.Optimizer
    ) -> None:
        self.owners = step, optimizer
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad()
                step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad()  # none: the captured backward makes its own
        with torch.cuda.graph(self.graph):
            step()

    def replay(self) -> None:
        self.graph.replay()


class Stacked:
    """Clients of equally many rows trained side by side: products by ``baddbmm``.

    One Adam moves the stacked parameters, element by element as each client's own.
    """

    def __init__(self, clients: Sequence[Client], batch: int, **adam: bool) -> None:
        self.x = torch.stack([c["x"] for c in clients])  # (K, N, D)
        self.y = torch.stack([c["y"] for c in clients])  # (K, N)
        self.text = clients[0]["text"]
        orders = torch.stack([c["perm"] for c in clients])  # (K, N)
        self.batches = orders.split(batch, dim=1)
        each = zip(*(c["params"] for c in clients))
        self.params = [nn.Parameter(torch.stack(own)) for own in each]
        self.of = torch.arange(len(clients), device=self.x.device)[:, None]
        lr, beta1, beta2, eps, decay, _ = ADAM
        self.optimizer = torch.optim.Adam(
            self.params, lr, (beta1, beta2), eps, decay, **adam
        )

    def loss(self, rows: Tensor) -> Tensor:
        """The sum of the clients' losses; ``rows`` (K, B)."""
        w1, b1, w2, b2 = self.params
        x, text = self.x[self.of, rows], self.text[self.y[self.of, rows]]  # (K, B, D)
        h = torch.baddbmm(b1[:, None], x, w1.mT).tanh()
        gate = torch.baddbmm(b2[:, None], h, w2.mT).softmax(dim=2)
        logits = ADAM[-1] * F.normalize(gate * x, dim=2) @ text.mT  # (K, B, B)
        size = rows.shape[1]
        truth = torch.arange(size, device=x.device).expand_as(rows).reshape(-1)
        both = [
            F.cross_entropy(m.reshape(-1, size), truth, reduction="sum")
            for m in (logits, logits.mT)
        ]
        return (both[0] + both[1]) / (2 * size)


def stacked(clients: Sequence[Client], batch: int, mode: str | None = None) -> Run:
    """A round of :class:`Stacked`; ``mode`` of torch.compile, if any."""
    all_of = Stacked(clients, batch, fused=True)
    loss = torch.compile(all_of.loss, mode=mode) if mode else all_of.loss

    def run() -> None:
        for rows in all_of.batches:
            all_of.optimizer.zero_grad()
            loss(rows).backward()
            all_of.optimizer.step()

    return run


def stacked_graph(clients: Sequence[Client], batch: int) -> Run:
    """The whole step of :class:`Stacked`, compiled, in one CUDA graph."""
    all_of = Stacked(clients, batch, fused=True, capturable=True)
    loss = torch.compile(all_of.loss)
    rows = all_of.batches[0].clone()

    def step() -> None:
        loss(rows).backward()
        all_of.optimizer.step()

    captured = Captured(step, all_of.optimizer)

    def run() -> None:
        for next_rows in all_of.batches:
            rows.copy_(next_rows)
            captured.replay()

    return run


def tf32(make: Callable[[], Run]) -> Run:
    """A rival with TF32 in its products, where the device has it."""

    def allowed(call: Callable[[], Any]) -> Any:
        products = torch.backends.cuda.matmul
        before, products.allow_tf32 = products.allow_tf32, True
        try:
            return call()
        finally:
            products.allow_tf32 = before

    run = allowed(make)
    return lambda: allowed(run)


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
