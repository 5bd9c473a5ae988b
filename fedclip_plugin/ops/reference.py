"""The operators in plain PyTorch: any floating dtype, any device, the kernels' oracle.

The mathematics (exact, no approximation):

* the softmax denominator cancels in ``z = normalize(softmax(u) * x)``, so
  ``z = normalize(exp(u - max u) * x)``;
* backward of softmax, product and normalisation collapses to
  ``du = z * (dz - z <z, dz>)``;
* the in-batch contrastive loss depends on a row's text only through its class, so
  the B x B logits reduce to B x C with class counts.

Source of the method: Lu et al. 2023 (arXiv 2302.13485), section 3; authors' code
``fed_at_clip.py: train``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NORM_FLOOR = 1e-12  # a feature row of zeros gives z = 0, not NaN


def operand(factor: Tensor, bf16: bool) -> Tensor:
    """A factor of a matrix product: as it is, or rounded to the nearest bfloat16.

    It keeps its type, so products are accumulated in that type, not in bfloat16.
    """
    return factor.bfloat16().to(factor.dtype) if bf16 else factor


def adapter_reference(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """Gated, normalised features.  ``x`` (N, D) -> ``z`` (N, D), ``h`` (N, D).

    ``h = tanh(x w1' + b1)``, ``z = normalize(softmax(h w2' + b2) * x)``.  ``bf16``
    rounds the factors of both products, see ``operand``.
    """
    h = torch.addmm(b1, operand(x, bf16), operand(w1, bf16).t()).tanh_()  # (N, D)
    u = torch.addmm(b2, operand(h, bf16), operand(w2, bf16).t())  # (N, D)
    if u.numel():
        u = u - u.amax(dim=1, keepdim=True)
    q = u.exp_().mul_(x)  # (N, D)
    norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)  # (N, 1)
    return q.div_(norm.clamp_min_(NORM_FLOOR)), h


def adapter_backward_reference(
    dz: Tensor,
    dh: Tensor | None,
    x: Tensor,
    h: Tensor,
    z: Tensor,
    w2: Tensor,
    bf16: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``adapter`` for ``w1, b1, w2, b2``; ``x`` is frozen.

    ``dz``, ``dh`` (N, D) are the gradients of both outputs; ``dh`` may be None.
    ``bf16`` rounds the factors of the three products, see ``operand``.
    """
    du = z * (dz - z * (z * dz).sum(dim=1, keepdim=True))  # (N, D)
    du_factor = operand(du, bf16)
    grad_h = du_factor @ operand(w2, bf16)  # (N, D)
    if dh is not None:
        grad_h = grad_h + dh
    da = grad_h * (1 - h * h)  # (N, D), before the tanh
    dw1 = operand(da, bf16).t() @ operand(x, bf16)  # (D, D)
    dw2 = du_factor.t() @ operand(h, bf16)  # (D, D)
    return dw1, da.sum(dim=0), dw2, du.sum(dim=0)


def contrastive_loss_and_grad(
    z: Tensor, y: Tensor, text: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """In-batch symmetric cross-entropy and its gradient.

    ``z`` (B, D), ``y`` (B,) int64, ``text`` (C, D) -> loss (), dz (B, D).  Equals
    ``(CE(M, arange) + CE(M', arange)) / 2`` with ``M = s z text[y]'``: rows of the
    same class count as negatives, as published.
    """
    present, column, count = torch.unique(y, return_inverse=True, return_counts=True)
    t = text.index_select(0, present)  # (P, D), only the classes in this batch
    logits = logit_scale * (z @ t.t())  # (B, P)
    log_count = count.to(z.dtype).log()  # (P,)
    row = torch.logsumexp(logits + log_count, dim=1)  # (B,)
    col = torch.logsumexp(logits, dim=0)  # (P,)
    own = logits.gather(1, column[:, None])[:, 0]  # (B,)
    size = z.shape[0]
    loss = ((row - own).sum() + (col[column] - own).sum()) / (2 * size)
    grad = (logits + log_count - row[:, None]).exp_()  # (B, P)
    grad += (logits + log_count - col).exp_()
    grad.scatter_add_(1, column[:, None], grad.new_full((size, 1), -2.0))
    return loss, (grad @ t).mul_(logit_scale / (2 * size))


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of ``torch.optim.Adam`` with L2 decay, in place; ``step`` from 1."""
    grad = grad.add(param, alpha=weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = 1 / math.sqrt(1 - beta2**step)
    denominator = exp_avg_sq.sqrt().mul_(scale).add_(eps)
    param.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))


def local_epoch_reference(
    x: Tensor,
    y: Tensor,
    text: Tensor,
    perm: Tensor,
    batch_size: int,
    params: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    logit_scale: float,
    bf16: bool = False,
) -> Tensor:
    """One pass over ``perm``; updates the parameters and moments in place.

    Shapes as in ``ops.local_epoch``.  Returns the loss of every step, (S,).  ``bf16``
    rounds the factors of the five matrix products to bfloat16; all else is as without.
    """
    losses = []
    w1, b1, w2, b2 = params
    for rows in perm.split(batch_size):
        if rows.numel() < 2:
            continue  # a batch of 1 has no negatives: the authors skip it
        xb, yb = x.index_select(0, rows), y.index_select(0, rows)
        z, h = adapter_reference(xb, w1, b1, w2, b2, bf16)
        loss, dz = contrastive_loss_and_grad(z, yb, text, logit_scale)
        grads = adapter_backward_reference(dz, None, xb, h, z, w2, bf16)
        step += 1
        for p, g, m, v in zip(params, grads, exp_avg, exp_avg_sq):
            adam_step(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay)
        losses.append(loss)
    return torch.stack(losses) if losses else x.new_empty(0)


def local_round_reference(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    text: Tensor,
    perm: Sequence[Tensor],
    batch_size: int,
    params: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    step: Sequence[int],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    logit_scale: float,
    bf16: bool = False,
) -> Tensor:
    """``local_epoch`` for every client in turn; four tensors a client in each list.

    Returns the losses of all clients, one client's after another's.
    """
    losses = [
        local_epoch_reference(
            x[i],
            y[i],
            text,
            perm[i],
            batch_size,
            params[4 * i : 4 * i + 4],
            exp_avg[4 * i : 4 * i + 4],
            exp_avg_sq[4 * i : 4 * i + 4],
            step[i],
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            logit_scale,
            bf16,
        )
        for i in range(len(x))
    ]
    return torch.cat(losses) if losses else text.new_empty(0)


GROUP = 8  # clients summed in fp32 before they join the float64 total


def weighted_mean_reference(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_i w_i x_i / sum_i w_i`` in list order; shape and dtype of ``xs[0]``.

    Groups of 8 are summed in the inputs' dtype and accumulated in float64: as fast
    as an fp32 sum and an order of magnitude more exact over many clients.
    """
    shares = (weights.double() / weights.double().sum()).tolist()
    total = torch.zeros_like(xs[0], dtype=torch.float64)
    for start in range(0, len(xs), GROUP):
        group = torch.zeros_like(xs[0])
        for x, share in zip(xs[start : start + GROUP], shares[start : start + GROUP]):
            group.add_(x, alpha=share)
        total += group
    return total.to(xs[0].dtype)


def squared_distances_reference(xs: Sequence[Tensor], origin: Tensor) -> Tensor:
    """Squared L2 distance of each tensor from ``origin``; (K,) float64."""
    if not xs:
        return origin.new_empty(0, dtype=torch.float64)
    return torch.stack([(x - origin).square().sum(dtype=torch.float64) for x in xs])


def squared_norms_int8_reference(
    qs: Sequence[Tensor], scales: Sequence[Tensor]
) -> Tensor:
    """``|scales[i][:, None] * qs[i]|^2`` of each; (K,) float64.

    ``qs[i]`` (R, ...) int8; ``scales[i]`` (R,) float32, one a row, or (1,).
    """
    found = qs[0].new_zeros(len(qs), dtype=torch.float64)
    for i, (q, scale) in enumerate(zip(qs, scales)):
        if q.numel():
            rows = q.reshape(len(scale), -1).double()
            found[i] = (rows.square().sum(dim=1) * scale.double().square()).sum()
    return found


def weighted_mean_int8_reference(
    qs: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Weighted mean of ``scales[i][:, None] * qs[i]``; float32, shape of ``qs[0]``.

    ``qs[i]`` (R, ...) int8; ``scales[i]`` (R,) float32, one a row, or (1,).
    """
    shares = weights.double() / weights.double().sum()
    total = torch.zeros(qs[0].shape, dtype=torch.float64, device=qs[0].device)
    for q, scale, share in zip(qs, scales, shares):
        row = scale.double() * share
        total += row.reshape(-1, *[1] * (q.dim() - 1)) * q if q.dim() else row[0] * q
    return total.float()
