"""A data set encoded by 1, 2 and 4 processes, each killed once: every image once?

    python -m benchmarks shards --images DIR --model NAME --pretrained FILE [--write]

`fedclip features --shard K/N` for every K at once over an empty cache; `kill -9` for
each as soon as it has saved something; the same commands again; `--merge N`.  Counted
in the files: images, images that lie in two of them, images saved before the kill and
encoded after it.  The features have to be those of one process.  Without ``--images``
the embedded digits are encoded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import (
    as_json,
    build_parser,
    measured_on,
    parse,
    save,
    table,
)
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.features.feature_set import load_features
from fedclip_plugin.storage.tensors import read_tensors

FEDCLIP = [sys.executable, "-m", "fedclip_plugin.cli", "features"]
COUNTS = (1, 2, 4)
PAUSE = 0.1  # seconds between two looks
Row = dict[str, Any]


def stored(cache: Path) -> Counter[bytes]:
    """How often each image lies in the cache."""
    files = sorted(cache.glob("features/*/shard-*.safetensors"))
    rows = [read_tensors(file)[0]["digest"].numpy() for file in files]
    return Counter(bytes(digest) for digests in rows for digest in digests)


def start(words: Sequence[str], cache: Path) -> subprocess.Popen[str]:
    """`fedclip features` over a cache."""
    return subprocess.Popen(
        [*FEDCLIP, *words],
        env={**os.environ, "FEDCLIP_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed; SystemExit where it failed."""
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(output)
    return output


def kill_after_a_save(processes: Sequence[subprocess.Popen[str]], cache: Path) -> int:
    """Kill each once there is a file more than before its neighbour's kill."""
    killed = 0
    for place, process in enumerate(processes, 1):
        while process.poll() is None and len(stored_files(cache)) < place:
            time.sleep(PAUSE)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    return killed


def stored_files(cache: Path) -> list[Path]:
    """The files with image features."""
    return sorted(cache.glob("features/*/shard-*.safetensors"))


def shards(options: Sequence[str], count: int, folder: Path) -> Row:
    """One row of the table."""
    cache, to = folder / f"cache-{count}", folder / f"features-{count}"
    words = [[*options, "--shard", f"{k}/{count}"] for k in range(1, count + 1)]
    killed = kill_after_a_save([start(one, cache) for one in words], cache)
    before = stored(cache)
    begun = time.perf_counter()
    again = [ended(process) for process in [start(one, cache) for one in words]]
    seconds = time.perf_counter() - begun
    merged = ended(start([*options, "--merge", str(count), "--to", str(to)], cache))
    after = stored(cache)
    now = [int(number) for number in re.findall(r"(\d+) encoded", "".join(again))]
    features = load_features(to)
    digest = hashlib.sha256()
    for domain in features.domains:
        digest.update(features.image[domain].numpy().tobytes())
    return {
        "processes": count,
        "killed": killed,
        "saved": len(before),
        "encoded_after": sum(now),
        "images": len(after),
        "twice": sum(times > 1 for times in after.values()),
        "rows": sum(len(labels) for labels in features.label.values()),
        "merge_encoded": int("".join(re.findall(r"(\d+) encoded", merged)[:1]) or -1),
        "seconds_after": seconds,
        "sha256": digest.hexdigest(),
    }


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = (
        "processes", "killed", "saved before", "encoded after", "images", "twice",
        "rows merged", "encoded by the merge", "s after", "features",
    )  # fmt: skip
    first = found["rows"][0]["sha256"]
    keys = (
        "processes", "killed", "saved", "encoded_after", "images", "twice", "rows",
        "merge_encoded",
    )  # fmt: skip
    rows = [
        [
            *(f"{row[key]:,}" for key in keys),
            f"{row['seconds_after']:.0f}",
            "the same bits" if row["sha256"] == first else "OTHER BITS",
        ]
        for row in found["rows"]
    ]
    lines = "\n".join(table(head, rows))
    return f"""# Encoding by several processes

`python -m benchmarks shards --images DIR ... --write`: {found["what"]} encoded by
`fedclip features --shard K/N`, all N at once, a thread each, over one empty cache.
Every process is killed by `kill -9` after a file was saved, all are
started again, and `--merge N` writes the features. *Saved before* the kill and *encoded
after* it are *images* together: none twice, none left out. *Twice* are images that lie
in two files. *Rows* are images and their copies.

{measured_on(found["machine"])}, load {found["machine"]["load"]}

{lines}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = build_parser("shards", __doc__)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR")
    add("--dataset", default="digits")
    add("--model", default="auto")
    add("--model-config", metavar="DIR")
    add("--pretrained", default="auto")
    add("--precision", default="auto")
    add("--processes", type=int, nargs="+", default=COUNTS)
    args = parse(parser, argv, processes=(2,))
    options = ["--dataset", args.dataset, "--model", args.model]
    options += ["--pretrained", args.pretrained, "--precision", args.precision]
    options += ["--device", "cpu"]
    if args.images:
        options += ["--root", str(args.images)]
    if args.model_config:
        options += ["--model-config", args.model_config]
    with tempfile.TemporaryDirectory(prefix="fedclip-shards-") as folder:
        rows = []
        for count in args.processes:
            rows.append(shards(options, count, Path(folder)))
            print(json.dumps(rows[-1]), file=sys.stderr)
    name = args.images.name if args.images else args.dataset
    results = {"machine": machine(), "what": name, "rows": rows}
    page = report(results)
    save(args.out, "shards", json=as_json(results), md=page)
    print(page)
