"""``--evaluate``: every client scores a given state, and nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedclip_plugin as fc
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.export.trained import read_trained
from tests.federation.toy import write_toy


@pytest.mark.parametrize("alg", ["fedclip", "gda", "linear"])
def test_every_client_scores_the_state_as_it_is(
    alg: str, toy: Path, tmp_path: Path
) -> None:
    common = {"features": toy, "alg": alg, "target": "photo"}
    trained = fc.run(**common, rounds=2, lr=1e-2, out=tmp_path / "run")
    file = tmp_path / "run" / "adapter.safetensors"
    found = fc.run(**common, evaluate=file, out=tmp_path / "job")
    assert found["rounds"] == 1
    for which in ("zero_shot", "result"):
        assert found[which] == trained[which]
    before, after = (read_trained(tmp_path / n).state for n in ("run", "job"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    per_client = found["communication"]["bytes_up"] / 2
    assert per_client < 500


def test_what_does_not_fit_is_refused(toy: Path, tmp_path: Path) -> None:
    fc.run(features=toy, alg="gda", target="photo", out=tmp_path / "run")
    file = tmp_path / "run" / "adapter.safetensors"
    with pytest.raises(ConfigError, match="--alg fedclip on these features"):
        fc.run(features=toy, target="photo", evaluate=file)
    wide = write_toy(tmp_path / "wide", dim=8)
    with pytest.raises(ConfigError, match="of shape"):
        fc.run(features=wide, alg="gda", target="photo", evaluate=file)
    other = write_toy(tmp_path / "other", classes=3)
    with pytest.raises(ConfigError, match="predicts the classes"):
        fc.run(features=other, alg="gda", target="photo", evaluate=file)
    with pytest.raises(ConfigError, match="which every site has to have"):
        fc.run(features=toy, target="photo", evaluate=tmp_path / "none")
    with pytest.raises(ConfigError, match="shares no state"):
        fc.run(features=toy, target="photo", alg="local", evaluate=file)
