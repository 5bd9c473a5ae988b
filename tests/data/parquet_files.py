"""Parquet files as the hub keeps image data sets: small, drawn from a seed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PACS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ["dog", "elephant", "giraffe"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def rows(count: int = 4) -> list[dict[str, Any]]:
    """As in flwrlabs/pacs: the file's own name in `path`, sketches as PNG."""
    found = []
    for d, domain in enumerate(PACS):
        for label in range(len(CLASSES)):
            for i in range(count):
                kind = "PNG" if domain == "sketch" else "JPEG"
                data = picture(d * 100 + label * 10 + i, kind)
                image = {"bytes": data, "path": f"pic_{count - i:03d}.{kind.lower()}"}
                found.append({"image": image, "domain": domain, "label": label})
    return found


def write(
    path: Path,
    values: list[dict[str, Any]],
    names: dict[str, list[str]] | None = None,
    **types: Any,
) -> Path:
    fields = {"image": IMAGE, "domain": pa.string(), "label": pa.int64(), **types}
    schema = pa.schema(list(fields.items()))
    if names is not None:
        features = {k: {"names": v, "_type": "ClassLabel"} for k, v in names.items()}
        features["image"] = {"_type": "Image"}  # type: ignore[assignment]
        info = json.dumps({"info": {"features": features}})
        schema = schema.with_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(values, schema), path, row_group_size=10)
    return path


def json_copy(row: dict[str, Any], path: str) -> dict[str, Any]:
    return {**row, "image": {**row["image"], "path": path}}


@pytest.fixture(name="parquet")
def two_shards(tmp_path: Path) -> Path:
    """Two shards, in a folder as on the hub."""
    values, names = rows(), {"label": CLASSES}
    write(
        tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", values[:20], names
    )
    write(
        tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", values[20:], names
    )
    return tmp_path / "hub"
