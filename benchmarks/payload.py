"""How many bytes travel: FedCLIP's adapter against all of CLIP, on real payloads.

    python -m benchmarks.payload [--model ViT-B-32]

The model has random weights; only the sizes count.  Results go to results/payload.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import open_clip

from benchmarks.timing import machine
from fedclip_plugin.algorithms.adapter import initial_state
from fedclip_plugin.wire.message import encode_update
from fedclip_plugin.wire.update import ClientUpdate, State

RESULTS = Path(__file__).parent / "results" / "payload.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Encode both updates and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ViT-B-32")
    args = parser.parse_args(argv)
    model = open_clip.create_model(args.model)
    dim = open_clip.get_model_config(args.model)["embed_dim"]
    whole = {name: p.detach() for name, p in model.named_parameters()}
    rows = [
        _row("FedAVG on all of CLIP", whole),
        _row("FedCLIP's adapter", initial_state(dim, seed=0)),
    ]
    (_, many, large), (_, few, small) = rows
    lines = [
        f"# One client's update, {args.model}",
        "",
        f"`python -m benchmarks.payload`; {machine()['date']}.  Bytes are those of "
        "`wire.encode_update`, names and checksum included.",
        "",
        "| method | parameters trained | bytes sent |",
        "|---|---:|---:|",
        *(f"| {name} | {count:,} | {size:,} |" for name, count, size in rows),
        f"| ratio | {many / few:.1f} | {large / small:.1f} |",
        "",
        "The paper says 283 times.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _row(name: str, state: State) -> tuple[str, int, int]:
    count = sum(value.numel() for value in state.values())
    return name, count, len(encode_update(ClientUpdate("client", state, 1000)))


if __name__ == "__main__":
    main()
