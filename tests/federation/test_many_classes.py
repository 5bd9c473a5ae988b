"""Scores of many classes: nothing of all rows by all classes in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.command import random_features
from fedclip_plugin import api
from fedclip_plugin.features.feature_set import save_features
from fedclip_plugin.federation import metrics
from fedclip_plugin.federation.metrics import calibration_error, class_metrics


def test_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(300, 40, generator=generator)
    truth = torch.randint(0, 40, (300,), generator=generator)
    whole = class_metrics(scores, truth)
    monkeypatch.setattr(metrics, "AT_ONCE", 41)
    assert class_metrics(scores, truth) == whole


def test_no_wide_matrix_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "AT_ONCE", 2000)
    sizes: list[int] = []
    genuine = Tensor.double

    def double(self: Tensor) -> Tensor:
        sizes.append(self.numel())
        return genuine(self)

    monkeypatch.setattr(Tensor, "double", double)
    scores, truth = torch.randn(500, 100), torch.arange(500) % 100
    class_metrics(scores, truth)
    calibration_error(scores, truth)
    assert max(sizes) <= 2000


@pytest.mark.slow
def test_5089_classes_from_features_to_report(tmp_path: Path) -> None:
    features = random_features(700, ("a", "b"), dim=16, classes=5089)
    save_features(features, tmp_path / "features")
    out = tmp_path / "run"
    summary = api.run(
        features=tmp_path / "features", rounds=1, target="b", out=out, eval_every=1
    )
    assert any("5,089 classes: confusion" in note for note in summary["notes"])
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["confusion"] == {}
    page = (out / "report.html").read_text()
    assert "5,089 classes: confusion" in page
    assert len(page) < 5_000_000
