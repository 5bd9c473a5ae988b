"""Inputs for the tests of the operators, in any dtype, from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin import ops
from fedclip_plugin.ops.kernels import pure_python

OPS = torch.ops.fedclip
REFERENCE = torch.ops.fedclip_reference
ADAM = (1e-3, 0.9, 0.98, 1e-6, 0.2)  # lr, beta1, beta2, eps, weight_decay
SCALE = 100.0


@dataclass
class Client:
    """One client's data and training state."""

    x: Tensor
    y: Tensor
    text: Tensor
    perm: Tensor
    params: list[Tensor]
    exp_avg: list[Tensor]
    exp_avg_sq: list[Tensor]
    step: int = 0

    def to(self, dtype: torch.dtype) -> Client:
        """A copy of everything; floating-point tensors in `dtype`."""
        return Client(
            self.x.to(dtype, copy=True),
            self.y.clone(),
            self.text.to(dtype, copy=True),
            self.perm.clone(),
            *(
                [t.to(dtype, copy=True) for t in tensors]
                for tensors in (self.params, self.exp_avg, self.exp_avg_sq)
            ),
            step=self.step,
        )

    def state(self) -> list[Tensor]:
        return [*self.params, *self.exp_avg, *self.exp_avg_sq]

    def local(self) -> ops.LocalClient:
        """As the checked wrappers take it."""
        state = (self.params, self.exp_avg, self.exp_avg_sq)
        return ops.LocalClient(self.x, self.y, self.perm, *state, step=self.step)


def make_params(dim: int) -> list[Tensor]:
    root = max(dim, 1) ** 0.5
    weight = [(torch.rand(dim, dim) * 2 - 1) / root for _ in range(2)]
    bias = [(torch.rand(dim) * 2 - 1) / root for _ in range(2)]
    return [weight[0], bias[0], weight[1], bias[1]]


def make_client(dim: int, rows: int, classes: int, seed: int = 0) -> Client:
    torch.manual_seed(seed)
    params = make_params(dim)
    return Client(
        torch.randn(rows, dim) * 0.3,
        torch.randint(0, classes, (rows,)),
        F.normalize(torch.randn(classes, dim), dim=1),
        torch.randperm(rows),
        params,
        [torch.zeros_like(p) for p in params],
        [torch.zeros_like(p) for p in params],
    )


def checked_epoch(client: Client, batch_size: int, *precision: str) -> Tensor:
    """Runs the wrapper `ops.local_epoch` in place; the losses."""
    hyper = ops.Hyperparameters(batch_size, *ADAM, SCALE, *precision)
    return ops.local_epoch(client.local(), client.text, hyper)


def epoch(op, client: Client, batch_size: int, *precision: str) -> Tensor:  # type: ignore[no-untyped-def]
    """Runs `op`, a `local_epoch`, in place; the losses."""
    c = client
    return op(
        c.x,
        c.y,
        c.text,
        c.perm,
        batch_size,
        c.params,
        c.exp_avg,
        c.exp_avg_sq,
        c.step,
        *ADAM,
        SCALE,
        *precision,
    )


def whole_round(  # type: ignore[no-untyped-def]
    op, clients: list[Client], batch_size: int, *precision: str
) -> list[Tensor]:
    """Runs `op`, a `local_round`, in place; the losses of each client."""
    losses = op(
        [c.x for c in clients],
        [c.y for c in clients],
        clients[0].text,
        [c.perm for c in clients],
        batch_size,
        [t for c in clients for t in c.params],
        [t for c in clients for t in c.exp_avg],
        [t for c in clients for t in c.exp_avg_sq],
        [c.step for c in clients],
        *ADAM,
        SCALE,
        *precision,
    )
    sizes = [
        len(c.perm) // batch_size + (len(c.perm) % batch_size > 1) for c in clients
    ]
    return list(losses.split(sizes))


def same(a: Tensor, b: Tensor) -> bool:
    """The kernels give the same bits; ATen's own sums depend on the layout."""
    return torch.allclose(a, b, 1e-4, 1e-6) if pure_python() else torch.equal(a, b)
