"""``fedclip export --format hub``: a run's state as a folder ready for a model hub.

    adapter.safetensors   the shared state, as `--state` reads it
    config.json           algorithm, CLIP, prompts, classes
    README.md             the model card: measured table, data, protocol, licence

Nothing of this machine's paths is in it, and nothing that a client keeps for itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..config.inputs import DESCRIPTIONS, SCHEMAS
from ..config.schema import RunConfig
from ..data.listing import some
from ..data.partition import NO_TARGET
from ..report.records import RunRecord
from ..report.tables import facts
from ..report.text import merge
from ..report.wording import method_label
from ..runs.results import changed
from ..storage.files import cannot_write, write_bytes, write_json
from ..storage.tensors import read_tensors, write_tensors
from .trained import ADAPTER, Trained, read_trained

CARD, CONFIG = "README.md", "config.json"
UNKNOWN = "unknown"
NO_LICENCE = (
    "the model card says that the licence is unknown: give --license, such as mit"
)


def export_hub(
    directory: Path,
    record: RunRecord,
    config: RunConfig,
    to: Path,
    licence: str,
    which: str | Path = "best",
) -> tuple[list[Path], list[str]]:
    """Write the folder ``to``; returns its files, and lines on what it lacks.

    ``record`` is the run in ``directory``, ``config`` its configuration.  Raises
    ConfigError for a method without a shared state, RunError where ``to`` cannot be
    written.
    """
    trained = read_trained(directory, state=which)
    state = trained.shared
    prompts = tuple(map(_portable_prompt, trained.prompts))
    model = _portable_model(trained.model)
    _, metadata = read_tensors(trained.path)
    metadata |= {"model": model, "prompts": json.dumps(prompts)}
    metadata = {k: v for k, v in metadata.items() if k in _PUBLISHED}
    about = {
        "library_name": "fedclip-plugin",
        "version": __version__,
        "algorithm": record.summary["algorithm"],
        "model": model,
        "pretrained": Path(str(record.summary.get("pretrained", UNKNOWN))).name,
        "prompts": list(prompts),
        "classes": list(trained.classes),
        "logit_scale": float(metadata.get("logit_scale", "nan")),
    }
    written = [ADAPTER, CONFIG, CARD]
    try:
        to.mkdir(parents=True, exist_ok=True)
        for prompt in trained.prompts:
            if prompt.startswith(DESCRIPTIONS):
                source = Path(prompt.removeprefix(DESCRIPTIONS))
                shutil.copyfile(source, to / source.name)
                written.append(source.name)
        write_tensors(to / ADAPTER, state, metadata)
        write_json(to / CONFIG, about)
        card = model_card(record, config, trained, about, licence)
        write_bytes(to / CARD, card.encode())
    except OSError as error:
        raise cannot_write(to, error) from error
    notes = [NO_LICENCE] if licence == UNKNOWN else []
    if len(state) < len(trained.state):
        notes.append("what clients keep for themselves stays here")
    return [to / name for name in written], notes


_PUBLISHED = (
    *("format", "model", "encoder", "prompts", "classes", "logit_scale"),
    *("features", "target", "seed", "round"),
)


def model_card(
    record: RunRecord,
    config: RunConfig,
    trained: Trained,
    about: Mapping[str, Any],
    licence: str,
) -> str:
    """The README.md: a header of metadata, then what was measured and how."""
    summary = record.summary
    data, name = summary["dataset"], method_label(summary)
    lines = [
        *("---", *_header(record, about, licence), "---", ""),
        f"# {name} on {data}",
        "",
        f"What federated learning added to a frozen CLIP, {about['model']} with "
        f"{about['pretrained']}: {summary['communication']['params']:,} parameters "
        f"trained, {len(trained.classes)} classes ({some(trained.classes, 10, False)})."
        "  The CLIP itself is not here.",
        "",
        *("## Measured", "", "Accuracies in per cent, zero-shot CLIP beside.", ""),
        merge([record], "markdown"),
        *("## Data and protocol", ""),
        *(f"- {key}: {value}" for key, value in _protocol(record, config).items()),
        "",
        "Every domain, or part of one, is a client; what is held out was never seen in "
        "training.  The best round is chosen by the clients' validation splits, and "
        "the table is of their test splits and of the held-out domain.",
        "",
        *("## Licence", "", _licence(licence, data, about), ""),
        *("## Use", "", "```", *_commands(), "```", ""),
        f"Made by fedclip-plugin {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _header(record: RunRecord, about: Mapping[str, Any], licence: str) -> Iterator[str]:
    """The metadata, as YAML whose values are JSON."""
    summary = record.summary
    yield f"license: {json.dumps(licence)}"
    yield "library_name: fedclip-plugin"
    yield "pipeline_tag: zero-shot-image-classification"
    yield f"base_model: {json.dumps(about['model'])}"
    yield f"datasets: {json.dumps([summary['dataset']])}"
    tags = ["clip", "federated-learning", "image-classification", about["algorithm"]]
    yield f"tags: {json.dumps(tags)}"
    yield 'metrics: ["accuracy"]'
    held_out = record.target != NO_TARGET
    values = {
        "held-out domain": summary["result"]["target"] if held_out else None,
        "mean over clients and held-out domain": summary["result"]["mean"],
    }
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": summary["dataset"], "type": summary["dataset"]},
            "metrics": [
                {"type": "accuracy", "name": name, "value": round(100 * value, 2)}
                for name, value in values.items()
                if value is not None
            ],
        }
    ]
    name = f"{about['algorithm']}-{summary['dataset']}"
    yield f"model-index: {json.dumps([{'name': name, 'results': results}])}"


def _protocol(record: RunRecord, config: RunConfig) -> dict[str, str]:
    settings = {k: v for k, v in changed(config).items() if k != "split"}
    found = facts([record.summary]) | {
        "Model": _portable_model(str(record.summary["model"])),
        "Weights": Path(str(record.summary.get("pretrained", UNKNOWN))).name,
        "Prompts": " | ".join(map(_portable_prompt, config.data.prompts)),
        "Partition": config.data.partition,
        "Options": ", ".join(f"{k}={v}" for k, v in settings.items()) or "defaults",
    }
    if spent := record.summary.get("privacy"):
        found["Privacy"] = ", ".join(f"{k} {v}" for k, v in spent.items())
    return found


def _licence(licence: str, data: str, about: Mapping[str, Any]) -> str:
    own = "not told" if licence == UNKNOWN else licence
    return (
        f"Of this state: {own}.  It was learned from {data}, on top of "
        f"{about['model']}: their own licences hold for what is made of them."
    )


def _commands() -> tuple[str, ...]:
    return (
        "pip install fedclip-plugin",
        "fedclip evaluate RUN --state adapter.safetensors --dataset NAME --root DATA",
    )


def _portable_prompt(prompt: str) -> str:
    if not prompt.startswith(DESCRIPTIONS):
        return prompt
    return DESCRIPTIONS + Path(prompt.removeprefix(DESCRIPTIONS)).name


def _portable_model(model: str) -> str:
    schema, _, where = model.partition(":")
    return Path(where).name if f"{schema}:" == SCHEMAS[1] else model
