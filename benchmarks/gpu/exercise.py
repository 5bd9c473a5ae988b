"""Every CUDA kernel once, on small inputs: what compute-sanitizer watches."""

from __future__ import annotations

import torch

from benchmarks.gpu.rivals import make_client, ours
from fedclip_plugin import ops  # noqa: F401  registers the operators


def main(device: str = "cuda") -> int:
    fedclip = torch.ops.fedclip
    for dim, batch in ((33, 7), (64, 40), (130, 32), (128, 40), (256, 32), (640, 8)):
        first = make_client(dim, batch, 2, device)
        second = make_client(dim, batch, 1, device, 1, first["text"])
        for bf16 in (False, True):
            ours([first, second], batch, bf16)()
        x, params = first["x"], first["params"]
        z, h = fedclip.adapter(x, *params)
        fedclip.adapter_backward(z, h, x, h, z, params[2])
        for count in (3, 17):
            xs = [x + i for i in range(count)]
            fedclip.weighted_mean(xs, torch.ones(count))
            fedclip.squared_distances(xs, x)
            qs = [(v * 9).to(torch.int8) for v in xs]
            scales = [v[:, 0].contiguous() for v in xs]
            fedclip.weighted_mean_int8(qs, scales, torch.ones(count))
            fedclip.squared_norms_int8(qs, scales)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    print("exercised")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
