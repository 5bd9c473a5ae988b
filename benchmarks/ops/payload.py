"""How many bytes travel: FedCLIP's adapter against all of CLIP, on real payloads.

    python -m benchmarks payload [--model ViT-B-32]

The model has random weights; only the sizes count.
"""

from __future__ import annotations

from collections.abc import Sequence

import open_clip

from benchmarks.command import build_parser, parse, save, table
from fedclip_plugin.algorithms.adapter import initial_state
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.wire.message import encode_update
from fedclip_plugin.wire.update import ClientUpdate, State


def main(argv: Sequence[str] | None = None) -> None:
    """Encode both updates and compare."""
    parser = build_parser("payload", __doc__)
    parser.add_argument("--model", default="ViT-B-32")
    args = parse(parser, argv, model="ViT-S-32-alt")
    model = open_clip.create_model(args.model)
    dim = open_clip.get_model_config(args.model)["embed_dim"]
    whole = {name: p.detach() for name, p in model.named_parameters()}
    many, large = _size(whole)
    few, small = _size(initial_state(dim, seed=0))
    lines = [
        f"# One client's update, {args.model}",
        "",
        f"`python -m benchmarks payload`; {machine()['date']}.  Bytes are those of "
        "`wire.encode_update`, names and checksum included.",
        "",
        *table(
            ["method", "parameters trained", "bytes sent"],
            [
                ["FedAVG on all of CLIP", f"{many:,}", f"{large:,}"],
                ["FedCLIP's adapter", f"{few:,}", f"{small:,}"],
                ["ratio", f"{many / few:.1f}", f"{large / small:.1f}"],
            ],
        ),
        "",
        "The paper says 283 times.",
    ]
    save(args.out, "payload", md="\n".join(lines) + "\n")
    print("\n".join(lines))


def _size(state: State) -> tuple[int, int]:
    """Parameters, and bytes of an update of them."""
    count = sum(value.numel() for value in state.values())
    return count, len(encode_update(ClientUpdate("client", state, 1000)))
