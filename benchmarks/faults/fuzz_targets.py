"""What reads bytes of strangers, each as a function of bytes, and sound bytes for it.

A target returns, or raises what ``main`` of the command line turns into one line.
Anything else that it raises is a fault; so is a hang, and memory beyond the bytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults.fuzz_files import folder, instead, put
from benchmarks.faults.fuzz_runs import RUN, of_run, read_finished, read_lines
from fedclip_plugin.algorithms import FedClip, Task, get_algorithm
from fedclip_plugin.data.images import decode_image
from fedclip_plugin.errors import (
    DataError,
    FeaturesError,
    FedClipError,
    RunError,
    UpdateError,
)
from fedclip_plugin.features.feature_set import FeatureSet, load_features, save_features
from fedclip_plugin.features.store import FeatureStore
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Progress, RunState
from fedclip_plugin.storage.tensors import (
    DamagedFileError,
    TensorBytesError,
    read_tensors,
    strict_json,
    write_tensors,
)
from fedclip_plugin.wire.message import decode_update, encode_update, pack
from fedclip_plugin.wire.update import ClientUpdate

Work = Callable[[bytes], object]
STATE = {"0.weight": torch.ones(4, 4), "0.bias": torch.zeros(4)}
TASK = Task(torch.eye(4)[:2], 100.0, params=FedClip.Params())
FED = Federation(get_algorithm("fedclip"), TASK, (), None)
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
    put("run/checkpoint/last.safetensors", data)
    Checkpoint(folder() / "run", "me").load(FED)


def _checkpoints() -> list[bytes]:
    saved = Checkpoint(folder() / "seed", "me")
    progress = Progress(2, 1, releases=((1, 2, 3),))
    saved.save(RunState(progress, FED.first, FED.first, kept={"art": STATE}))
    return [saved.path.read_bytes()]


def read_shard(data: bytes) -> None:
    """A shard of the feature cache, and text features: dropped, never an error."""
    store = FeatureStore(folder() / "store")
    put("store/shard-1.safetensors", data)
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
    read_tensors(put("t.safetensors", data))


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


def _in_features(name: str) -> Work:
    def read(data: bytes) -> None:
        with instead(_features() / name, data):
            load_features(_features())

    return read


def _of_features(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_features() / name).read_bytes()]


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


def _of_run(name: str) -> list[bytes]:
    return [RUN[name].encode()]


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
    "summary on resume": Target(read_finished, (), partial(_of_run, "summary.json")),
    "metrics on resume": Target(read_lines, (), partial(_of_run, "metrics.jsonl")),
    **{
        f"report, {name}": Target(of_run(name), (FedClipError,), partial(_of_run, name))
        for name in RUN
    },
    "image": Target(lambda data: decode_image(data, "fuzz"), (DataError,), _images),
}
