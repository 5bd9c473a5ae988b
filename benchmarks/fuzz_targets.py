"""What reads bytes of strangers, each as a function of bytes, and sound bytes for it.

A target returns, or raises what ``main`` of the command line turns into one line.
Anything else that it raises is a fault; so is a hang, and memory beyond the bytes.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fedclip_plugin import records
from fedclip_plugin.checkpoint import Checkpoint, Progress
from fedclip_plugin.config import TrainConfig
from fedclip_plugin.errors import (
    DataError,
    FeaturesError,
    FedClipError,
    RunError,
    UpdateError,
)
from fedclip_plugin.experiment import _finished
from fedclip_plugin.features import FeatureSet, load_features, save_features
from fedclip_plugin.images import decode_image
from fedclip_plugin.outputs import Leaf, MetricsFile
from fedclip_plugin.storage import DamagedFileError, read_tensors, write_tensors
from fedclip_plugin.store import FeatureStore
from fedclip_plugin.tables import print_table
from fedclip_plugin.tensor_bytes import TensorBytesError, strict_json
from fedclip_plugin.update import ClientUpdate
from fedclip_plugin.wire import decode_update, encode_update, pack

Work = Callable[[bytes], object]
STATE = {"0.weight": torch.ones(4, 4), "0.bias": torch.zeros(4)}
UPDATE = ClientUpdate("art", STATE, 12, {"loss": 0.5})


@dataclass(frozen=True)
class Target:
    """A reader: what it does with bytes, which errors are its word, what it reads."""

    work: Work
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]

    def __call__(self, data: bytes) -> bool:
        """Whether the bytes were taken for good; raises only for a fault."""
        try:
            self.work(data)
        except self.errors:
            return False
        return True


@functools.cache
def folder() -> Path:
    """A directory for files, in memory where the system has one; left to the system."""
    shared = Path("/dev/shm")
    where = shared if shared.is_dir() else None
    kept = tempfile.TemporaryDirectory(prefix="fedclip-fuzz-", dir=where)
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[Any] = []  # removed when the process ends


def _file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------- the wire


def read_update(data: bytes) -> None:
    """An update off the wire; what is taken must survive another trip."""
    found = decode_update(data, "fuzz", STATE)
    again = decode_update(encode_update(found), "fuzz", STATE)
    assert again.client == found.client
    assert again.state.keys() == found.state.keys()
    assert all(_same(again.state[k], v) for k, v in found.state.items())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype is b.dtype and a.shape == b.shape and torch.equal(*raw)


def read_signed(data: bytes) -> None:
    """An update whose checksum is right, its fields being what ``data`` says."""
    fields = strict_json(data)
    if isinstance(fields, dict):
        fields.pop("sha256", None)
        read_update(pack(STATE, fields))


def read_header(data: bytes) -> None:
    """A safetensors header as it stands, over 80 bytes of tensors."""
    read_update(len(data).to_bytes(8, "little") + data + bytes(80))


def _update_bytes() -> list[bytes]:
    quantised = {"z/q": torch.arange(9).to(torch.int8), "s": torch.ones(1).half()}
    return [
        encode_update(UPDATE),
        encode_update(ClientUpdate("Zoë", quantised, 0)),
        encode_update(ClientUpdate("", {}, 1)),
    ]


def _headers() -> list[bytes]:
    return [d[8 : 8 + int.from_bytes(d[:8], "little")] for d in _update_bytes()]


def _fields() -> list[bytes]:
    return [json.loads(h)["__metadata__"]["fedclip"].encode() for h in _headers()]


# ------------------------------------------------------------------------------ files


def read_checkpoint(data: bytes) -> None:
    """A run's checkpoint."""
    _file("run/checkpoint/last.safetensors", data)
    Checkpoint(folder() / "run", "me").load(STATE)


def _checkpoints() -> list[bytes]:
    saved = Checkpoint(folder() / "seed", "me")
    saved.save(Progress(2, 1, releases=((1, 2, 3),)), STATE, STATE)
    return [saved.path.read_bytes()]


def read_shard(data: bytes) -> None:
    """A shard of the feature cache, and text features: dropped, never an error."""
    store = FeatureStore(folder() / "store")
    _file("store/shard-1.safetensors", data)
    for rows in store.load({"ab" * 32, "00" * 32}).values():
        assert rows.dim() == 1
    store._text_path([["a", "b"]]).write_bytes(data)
    store.load_text([["a", "b"]])


def _shards() -> list[bytes]:
    store = FeatureStore(folder() / "shards")
    store.add(["ab" * 32], torch.ones(1, 4))
    store.add_text([["a", "b"]], torch.ones(2, 4), 100.0)
    return [path.read_bytes() for path in store.directory.glob("*.safetensors")]


def read_tensor_file(data: bytes) -> None:
    """Any safetensors file of ours: adapters, personal adapters, features."""
    read_tensors(_file("t.safetensors", data))


def _tensor_files() -> list[bytes]:
    path = folder() / "seed.safetensors"
    write_tensors(path, STATE, {"classes": '["a", "b"]'})
    return [path.read_bytes(), *_shards()]


@functools.cache
def _features() -> Path:
    rows = {"art": torch.ones(3, 4)}
    features = FeatureSet(
        *("toy", "none", "a {}", ("a", "b"), ("art",), 100.0, 4, "key"),
        *(rows, {"art": torch.zeros(3, dtype=torch.int64)}, torch.ones(2, 4)),
    )
    save_features(features, folder() / "features")
    return folder() / "features"


@contextmanager
def _instead(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def _in_features(name: str) -> Work:
    def read(data: bytes) -> None:
        with _instead(_features() / name, data):
            load_features(_features())

    return read


def _of_features(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_features() / name).read_bytes()]


# ------------------------------------------------------------------- a stranger's run


def read_lines(data: bytes) -> None:
    """``metrics.jsonl`` and ``quarantined.jsonl`` of a run that is resumed."""
    path = _file("resumed/metrics.jsonl", data)
    _file("resumed/quarantined.jsonl", data)
    with MetricsFile(path) as metrics:
        best = metrics.cut(3, wanted=2)
    assert best is None or best["round"] == 2
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["round"] <= 3


def read_finished(data: bytes) -> None:
    """``summary.json`` of a leaf that a resumed run may keep."""
    _file("kept/summary.json", data)
    _finished(Leaf(folder() / "kept", None, 0, 2), TrainConfig(rounds=2))


def _run(name: str) -> Work:
    """``fedclip report`` of a run in which one file is not its own."""

    def read(data: bytes) -> None:
        with _instead(_leaf() / name, data):
            show(_leaf())

    return read


def show(leaf: Path) -> str:
    """The tables of a run, as the console gets them."""
    out = StringIO()
    found = records.load_runs(leaf)
    print_table(Console(file=out, width=100), [run.summary for run in found])
    return out.getvalue()


_SCORES = {"target": 0.5, "clients": {"art": 0.5, "photo": None}, "mean": 0.5}
SUMMARY: dict[str, Any] = {
    **{"algorithm": "fedclip", "variant": "", "dataset": "toy", "model": "toy"},
    **{"pretrained": "none", "seed": 0, "target": "scan", "rounds": 2},
    **{"best_round": 1, "zero_shot": _SCORES, "result": _SCORES, "quarantined": 1},
    "communication": {"bytes_up": 10, "bytes_down": 20, "params": 5},
    "seconds": {"features": 0.1, "train": 0.2, "evaluate": 0.3},
    "skipped_images": ["a.png"],
}
ROUND: dict[str, Any] = {
    **{"round": 1, "loss": 0.1, "mean_val": 0.5, "mean_test": 0.5, "target": None},
    **{"bytes_up": 5, "bytes_down": 10, "quarantined": 0},
    "clients": {"art": {"val": 0.5, "test": 0.5}, "photo": {"val": None, "test": None}},
}
EVALUATION: dict[str, Any] = {
    "classes": ["a", "b"],
    "confusion": {"fedclip": [[1, 2], [3, 4]], "zero_shot": [[1, 2], [3, 4]]},
    "metrics": {"fedclip": {"macro_f1": 0.5}, "zero_shot": {}},
    "clients": {"art": {"train": 3, "val": 1, "test": 1, "train_per_class": [1, 2]}},
}
RUN = {
    "summary.json": json.dumps(SUMMARY),
    "metrics.jsonl": "".join(json.dumps({**ROUND, "round": i}) + "\n" for i in (1, 2)),
    "evaluation.json": json.dumps(EVALUATION),
}


@functools.cache
def _leaf() -> Path:
    for name, content in RUN.items():
        _file(f"leaf/{name}", content.encode())
    return folder() / "leaf"


# ------------------------------------------------------------------------------ images


def _images() -> list[bytes]:
    import io

    from PIL import Image

    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        out = io.BytesIO()
        Image.new("RGB", (5, 4), "red").save(out, kind)
        found.append(out.getvalue())
    return found


TARGETS = {
    "update": Target(read_update, (UpdateError,), _update_bytes),
    "update, signed": Target(read_signed, (UpdateError, TensorBytesError), _fields),
    "safetensors header": Target(read_header, (UpdateError,), _headers),
    "checkpoint": Target(read_checkpoint, (RunError,), _checkpoints),
    "cache shard": Target(read_shard, (), _shards),
    "adapter file": Target(read_tensor_file, (DamagedFileError,), _tensor_files),
    "features.json": Target(
        _in_features("features.json"), (FeaturesError,), _of_features("features.json")
    ),
    "features of a domain": Target(
        _in_features("art.safetensors"),
        (FeaturesError,),
        _of_features("art.safetensors"),
    ),
    "summary on resume": Target(
        read_finished, (), lambda: [RUN["summary.json"].encode()]
    ),
    "metrics on resume": Target(
        read_lines, (), lambda: [RUN["metrics.jsonl"].encode()]
    ),
    **{
        f"report, {name}": Target(
            _run(name), (FedClipError,), lambda name=name: [RUN[name].encode()]
        )
        for name in RUN
    },
    "image": Target(lambda data: decode_image(data, "fuzz"), (DataError,), _images),
}
