"""`fedclip algorithms`: what each trains, sends and needs, those of others too."""

from __future__ import annotations

import pytest

from fedclip_plugin.algorithms import ALGORITHMS
from fedclip_plugin.cli import main
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from tests.algorithms.installed import install_warm_start

OPTIONS = "options, not --alg of their own"


def listed(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, str]:
    assert main(["algorithms", *flags]) == 0
    blocks: dict[str, str] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(" "):
            blocks[name] += " ".join(line.split()) + "\n"
        else:
            name, blocks[line] = line, ""
    return blocks


def test_every_algorithm_tells_what_it_is(capsys):
    blocks = listed(capsys)
    options = blocks.pop(OPTIONS)
    assert "ggeur augmentation" in options
    assert "feddg-ga weights of clients" in options
    assert list(blocks) == ALGORITHMS.names()
    for text in blocks.values():
        labels = [line.split()[0] for line in text.splitlines()]
        assert labels[:5] == ["trained", "travels", "rounds", "needs", "transductive"]
    assert "travels 525,312 numbers, 2.0 MiB" in blocks["fedclip"]
    assert "rounds 200 by default" in blocks["fedclip"]
    assert "source Lu et al. 2023, arXiv 2302.13485" in blocks["fedclip"]
    assert "travels nothing" in blocks["zeroshot"]
    assert "rounds 1 by default" in blocks["gda"]
    assert "needs images" in blocks["fedavg"]


def test_what_is_compressed_by_default_is_listed_as_it_travels(capsys):
    blocks = listed(capsys, "--classes", "7", "--dim", "512")
    assert "3,598 numbers in fp16, 7.2 KiB up" in blocks["fedpft"]


@pytest.mark.parametrize(("classes", "dim"), [(7, 512), (3, 8)])
def test_numbers_are_those_of_the_classes_and_the_width(capsys, classes, dim):
    blocks = listed(capsys, "--classes", str(classes), "--dim", str(dim))
    assert f"{classes * (dim + 1):,} numbers" in blocks["linear"]
    gda = classes * (dim + 1) + dim * (dim + 1) // 2 + 8 * 6 + 3
    assert f"{gda:,} numbers" in blocks["gda"]


def test_those_of_other_packages_are_listed(capsys, monkeypatch):
    install_warm_start(monkeypatch)
    assert "525,312 numbers" in listed(capsys)["warm-start"]


def test_one_that_cannot_be_loaded_is_named(capsys, monkeypatch):
    monkeypatch.setitem(ALGORITHMS._items, "mine", int)
    assert "broken --alg mine" in listed(capsys)["mine"]


def test_what_needs_a_clip_is_listed_for_the_one_that_is_named(capsys):
    model, clip = "fedclip-tiny", FrozenClip.load(EncoderSpec(*2 * ["fedclip-tiny"]))
    assert "--model NAME" in listed(capsys)["promptfl"]
    blocks = listed(capsys, "--classes", "10", "--model", model)
    whole = sum(p.numel() for p in clip.model.parameters())
    assert f"travels {whole:,} numbers" in blocks["fedavg"]
    words = 4  # "a picture of a"
    width = clip.model.get_parameter("token_embedding.weight").shape[1]
    for name in ("promptfl", "kgcoop"):
        assert f"travels {words * width:,} numbers" in blocks[name]
    assert f"{10 * (clip.embed_dim + 1):,} numbers" in blocks["linear"]
    assert "depends" not in "".join(blocks.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "fedclip-tinny"], "--model fedclip-tinny is not known"),
        (["--model", "fedclip-tiny", "--dim", "7"], "have 256; leave it out"),
        (["--model-config", "here"], "--model-config needs --model"),
    ],
)
def test_a_clip_that_there_is_not_is_refused(capsys, flags, message):
    assert main(["algorithms", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--classes", "--dim"])
def test_no_classes_are_refused(capsys, flag):
    assert main(["algorithms", flag, "0"]) == 2
    assert f"{flag} 0: expected at least 1" in capsys.readouterr().err
