"""``import fedclip_plugin as fc``: what it offers, and that it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fedclip_plugin as fc
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.evaluation import predict_labels


def test_every_public_name_is_there() -> None:
    assert all(getattr(fc, name) is not None for name in fc.__all__)
    assert set(fc.__all__) <= set(dir(fc))
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        fc.fly  # noqa: B018


def test_importing_and_listing_load_no_torch() -> None:
    code = "import sys, fedclip_plugin as fc; dir(fc); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(fc.__file__).read_text(encoding="utf-8"))
    blocks = [n for n in tree.body if isinstance(n, ast.If)]
    names = {a.name for n in ast.walk(blocks[0]) if isinstance(n, ast.ImportFrom)
             for a in n.names}  # fmt: skip
    assert set(fc.__all__) <= names | {"__version__", "capabilities"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "run"
    rounds = []

    def watch(plan: object, snapshot: object) -> None:
        rounds.append(snapshot)

    summary = fc.run(target="sketch", rounds=2, lr=1e-3, out=out, on_round=watch)
    assert summary["target"] == "sketch"
    assert summary["rounds"] == 2
    assert len(rounds) == 3  # the start, and each round
    return out


def test_run_keeps_nothing_without_out(toy: Path) -> None:
    before = set(toy.parent.iterdir())
    summary = fc.run(features=toy, target="photo", rounds=2, seed=3)
    assert (summary["seed"], summary["algorithm"]) == (3, "fedclip")
    assert set(toy.parent.iterdir()) == before


def test_run_takes_several_targets_and_seeds(toy: Path) -> None:
    total = fc.run(features=toy, target=["photo", "art"], seed=[0, 1], rounds=1)
    assert len(total["runs"]) == 4


def test_run_goes_on(toy: Path, tmp_path: Path) -> None:
    whole = fc.run(features=toy, target="photo", rounds=4, out=tmp_path / "a")
    fc.run(features=toy, target="photo", rounds=2, out=tmp_path / "b")
    again = fc.run(rounds=4, out=tmp_path / "b", resume=True)
    assert again["result"] == whole["result"]
    state = fc.load_run(tmp_path / "b").state
    for key, value in fc.load_run(tmp_path / "a").state.items():
        assert torch.equal(state[key], value)


def test_features_go_to_a_directory_and_back(toy: Path, tmp_path: Path) -> None:
    features = fc.load_features(str(toy))
    fc.save_features(features, str(tmp_path / "again"))
    assert fc.load_features(tmp_path / "again").key == features.key


def test_misspelt_options_are_named(toy: Path) -> None:
    with pytest.raises(fc.ConfigError, match="did you mean"):
        fc.run(features=toy, local_epoch=1)
    with pytest.raises(fc.ConfigError, match="rounds"):
        fc.run(features=toy, rounds="many")
    with pytest.raises(fc.ConfigError, match="out"):
        fc.run(features=toy, resume=True)


def test_a_run_is_read_back(digits: Path) -> None:
    run = fc.load_run(digits)
    assert run.summary["best_round"] in (0, 1, 2)
    assert [line["round"] for line in run.metrics] == [1, 2]
    assert set(run.state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert run.config.train.rounds == 2
    with pytest.raises(fc.RunError, match="nowhere"):
        fc.load_run(digits / "nowhere")


def test_a_classifier_predicts_what_the_run_measured(
    digits: Path, tmp_path: Path
) -> None:
    features = fc.encode()
    fed = build_federation(features, fc.load_run(digits).config, "sketch", 0)
    assert fed.target is not None
    labels = predict_labels(
        fed.algorithm, fc.load_run(digits).state, fed.target, fed.task
    )
    domain = next(d for d in load_dataset("digits", None).domains if d.name == "sketch")
    files = []
    for i in range(40):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(domain.read(i))
    classifier = fc.load_classifier(digits)
    names, probabilities = classifier.predict(files, batch_size=16)
    assert probabilities.shape == (40, len(features.classes))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(40))
    want = [features.classes[i] for i in labels[:40].tolist()]
    same = sum(a == b for a, b in zip(names, want))
    assert same >= 39  # the run may have encoded in another precision: ties
    again = classifier.predict([Image.open(files[0])])
    assert again.labels == names[:1]
    assert classifier.predict([]).labels == []


def test_images_and_runs_that_cannot_serve_are_named(
    digits: Path, toy: Path, tmp_path: Path
) -> None:
    classifier = fc.load_classifier(digits)
    with pytest.raises(fc.DataError, match=r"none\.png"):
        classifier.predict([tmp_path / "none.png"])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(fc.DataError, match=r"torn\.png"):
        classifier.predict([tmp_path / "torn.png"])
    with pytest.raises(TypeError, match="list"):
        classifier.predict(tmp_path / "torn.png")  # type: ignore[arg-type]
    with pytest.raises(fc.RunError, match="client 'scan'"):
        fc.load_classifier(digits, client="scan")
    fc.run(features=toy, target="photo", rounds=1, algorithm="local", out="local")
    with pytest.raises(fc.ConfigError, match="each client"):
        fc.load_classifier("local", model="fedclip-tiny")
