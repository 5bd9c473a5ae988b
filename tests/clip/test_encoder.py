from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fedclip_plugin.clip import encoder
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip, fingerprint
from fedclip_plugin.clip.resolve import MODELS_DIR
from fedclip_plugin.config.inputs import ModelConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, WeightsError
from fedclip_plugin.ops.kernels import cpu_has_bf16, low_precision, resolve_device
from tests.clip.makers import RESNET, tiny_clip

SURROGATE = Path(__file__).resolve().parents[3] / "shared" / "data"


def _images(count: int = 6) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sides = rng.integers(20, 80, (count, 2))
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in sides
    ]


def _pixels(clip: FrozenClip, count: int = 6) -> torch.Tensor:
    return torch.stack([clip.preprocess(image) for image in _images(count)])


def _spec(folder: Path, name: str, **more) -> EncoderSpec:
    file = folder / f"{name}.safetensors"
    more.setdefault("device", "cpu")
    return EncoderSpec(name, str(file), str(folder), **more)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("vit")
    tiny_clip(folder, "tiny-vit", quick_gelu=True)
    return _spec(folder, "tiny-vit")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("resnet")
    tiny_clip(folder, "tiny-rn", RESNET)
    return _spec(folder, "tiny-rn")


def _with(spec: EncoderSpec, **changes) -> EncoderSpec:
    return EncoderSpec(**{**vars(spec), **changes})


@pytest.mark.parametrize("fixture", ["vit", "resnet"])
def test_features_are_open_clips(fixture, request):
    spec = request.getfixturevalue(fixture)
    clip = FrozenClip.load(spec)
    model, _, preprocess = open_clip.create_model_and_transforms(
        spec.model, pretrained=spec.pretrained
    )
    model.eval()
    pixels = torch.stack([preprocess(image) for image in _images()])
    assert torch.equal(pixels, _pixels(clip))
    captions = ["a picture of a dog", "a picture of a guitar"]
    with torch.no_grad():
        want_x = model.encode_image(pixels)
        want_t = model.encode_text(open_clip.get_tokenizer(spec.model)(captions))
    got_x, got_t = clip.encode_images(pixels), clip.encode_text(captions)
    torch.testing.assert_close(got_x, want_x)
    torch.testing.assert_close(got_t, want_t)
    assert got_x.norm(dim=1).sub(1).abs().min() > 1e-3  # raw, not normalised
    assert (clip.embed_dim, round(clip.logit_scale, 3)) == (24, 100.0)
    assert got_x.shape == (6, 24)


def test_quickgelu_changes_the_features(vit, tmp_path):
    tiny_clip(tmp_path, "tiny-gelu")
    same_weights = EncoderSpec("tiny-gelu", vit.pretrained, str(tmp_path), device="cpu")
    quick, usual = FrozenClip.load(vit), FrozenClip.load(same_weights)
    pixels = _pixels(quick)
    assert not torch.allclose(
        quick.encode_images(pixels), usual.encode_images(pixels), atol=1e-4
    )


def test_batchnorm_statistics_never_drift(resnet):
    clip = FrozenClip.load(resnet)
    before = {k: v.clone() for k, v in clip.image_tower.state_dict().items()}
    assert any("running_mean" in key for key in before)
    pixels = _pixels(clip)
    first = clip.encode_images(pixels)
    assert clip.train(True) is clip
    assert clip.eval() is clip
    assert not any(module.training for module in clip.image_tower.modules())
    assert torch.equal(clip.encode_images(pixels), first)
    for key, value in clip.image_tower.state_dict().items():
        assert torch.equal(value, before[key]), key
    # A batch norm in train mode would make a row depend on its batch.
    alone = torch.cat([clip.encode_images(row[None]) for row in pixels])
    torch.testing.assert_close(alone, first)


def test_nothing_is_trainable(vit):
    clip = FrozenClip.load(vit)
    assert not any(p.requires_grad for p in clip._model.parameters())
    pixels = _pixels(clip).requires_grad_()
    assert not clip.encode_images(pixels).requires_grad
    assert not clip.encode_text(["a"]).requires_grad


def test_features_made_in_inference_mode_can_be_trained_on(vit):
    with torch.inference_mode():
        clip = FrozenClip.load(_with(vit, precision="bf16"))
        x = clip.encode_images(_pixels(clip))
        t = clip.encode_text(["a", "b"])
    weight = torch.nn.Parameter(torch.eye(24))
    F.cross_entropy(x @ weight @ t.T, torch.zeros(6, dtype=torch.long)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(clip.encode_images(_pixels(clip)), x)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("fixture", ["vit", "resnet"])
def test_low_precision_runs_the_image_tower_only(fixture, precision, request):
    spec = request.getfixturevalue(fixture)
    exact = FrozenClip.load(_with(spec, precision="fp32"))
    clip = FrozenClip.load(_with(spec, precision=precision))
    pixels = _pixels(clip)
    assert {p.dtype for p in clip.image_tower.parameters()} == {
        encoder.DTYPES[precision]
    }
    got, want = clip.encode_images(pixels), exact.encode_images(pixels)
    assert got.dtype == torch.float32
    assert F.cosine_similarity(got, want).min() > 0.999
    assert float((got - want).norm()) > 1e-5 * float(want.norm())  # no rounding of fp32
    captions = ["a picture of a dog"]
    assert torch.equal(clip.encode_text(captions), exact.encode_text(captions))
    assert clip.resolve_precision(pixels) == precision


def _pretend_fast(monkeypatch, candidate: str | None) -> None:
    monkeypatch.setattr(encoder, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(encoder, "low_precision", lambda device: candidate)


@pytest.mark.parametrize("candidate", ["bf16", "fp16"])
def test_auto_takes_low_precision_where_features_agree(vit, monkeypatch, candidate):
    _pretend_fast(monkeypatch, candidate)
    clip = FrozenClip.load(_with(vit, precision="auto"))
    assert clip.precision == "auto"
    pixels = _pixels(clip)
    exact = clip.encode_images(pixels)
    assert clip.resolve_precision(pixels) == clip.precision == candidate
    assert next(clip.image_tower.parameters()).dtype == encoder.DTYPES[candidate]
    assert F.cosine_similarity(clip.encode_images(pixels), exact).min() > 0.999


@pytest.mark.parametrize("damage", ["one row", "nan", "no kernel"])
def test_auto_falls_back_to_fp32(vit, monkeypatch, damage):
    _pretend_fast(monkeypatch, "bf16")
    clip = FrozenClip.load(_with(vit, precision="auto"))
    pixels = _pixels(clip)
    exact = clip.encode_images(pixels)
    genuine = FrozenClip._encode

    def damaged(self, tower, rows, dtype):
        if dtype == torch.float32:
            return genuine(self, tower, rows, dtype)
        if damage == "no kernel":
            raise RuntimeError("not implemented for 'BFloat16'")
        out = genuine(self, tower, rows, dtype)
        out[-1] = float("nan") if damage == "nan" else out[-1].flip(0)
        return out

    monkeypatch.setattr(FrozenClip, "_encode", damaged)
    assert clip.resolve_precision(pixels) == "fp32"
    assert torch.equal(clip.encode_images(pixels), exact)


def test_auto_is_fp32_where_low_precision_gains_nothing(vit, monkeypatch):
    monkeypatch.setattr(encoder, "low_precision", lambda device: "bf16")
    clip = FrozenClip.load(_with(vit, precision="auto"))
    assert clip.precision == "fp32"  # a small tower
    monkeypatch.setattr(encoder, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(encoder, "low_precision", lambda device: None)
    assert FrozenClip.load(_with(vit, precision="auto")).precision == "fp32"


def test_fp16_overflow_is_told_with_the_remedy(vit):
    clip = FrozenClip.load(_with(vit, precision="fp16"))
    with torch.no_grad():
        clip.image_tower.ln_post.bias.fill_(100)
        clip.image_tower.proj.fill_(6e4)
    with pytest.raises(WeightsError, match="--precision bf16 or fp32"):
        clip.encode_images(_pixels(clip))


def test_nan_weights_are_told_in_fp32(vit):
    clip = FrozenClip.load(_with(vit, precision="fp32"))
    with torch.no_grad():
        clip.image_tower.proj.fill_(float("nan"))
    with pytest.raises(WeightsError, match="damaged"):
        clip.encode_images(_pixels(clip))


def test_nothing_but_zeros_is_told(vit):
    clip = FrozenClip.load(_with(vit, precision="fp32"))
    with torch.no_grad():
        clip.image_tower.proj.zero_()
        clip.model.text_projection.zero_()
    with pytest.raises(WeightsError, match="only zeros as image features in fp32"):
        clip.encode_images(_pixels(clip))
    with pytest.raises(WeightsError, match="only zeros as text features"):
        clip.encode_text(["a", "b"])
    assert not clip.encode_images(_pixels(clip)[:1]).any()  # one alone is a note


def test_shapes(vit):
    clip = FrozenClip.load(vit)
    assert clip.encode_images(torch.empty(0, 3, 32, 32)).shape == (0, 24)
    assert clip.encode_text([]).shape == (0, 24)
    assert clip.encode_text(["a"] * 300).shape == (300, 24)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        clip.encode_images(torch.empty(1, 3, 16, 16))


def test_a_coca_style_tower_returns_its_pooled_features(vit):
    clip = FrozenClip.load(vit)
    pixels = _pixels(clip)
    want = clip.encode_images(pixels)
    clip.image_tower.output_tokens = True
    assert torch.equal(clip.encode_images(pixels), want)


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "cuda:x"])
def test_a_missing_gpu_is_told(vit, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"--device {name}"):
        FrozenClip.load(_with(vit, device=name))


def test_auto_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_bf16_detection_reads_old_pytorch_s_way_too(monkeypatch, tmp_path):
    want = cpu_has_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    cpu_has_bf16.cache_clear()
    try:
        if Path("/proc/cpuinfo").exists():
            assert cpu_has_bf16() is want
    finally:
        cpu_has_bf16.cache_clear()
    assert low_precision(torch.device("cpu")) == ("bf16" if want else None)


def test_spec_from_config():
    config = RunConfig(model=ModelConfig("ViT-B/32", device="cpu", precision="bf16"))
    spec = EncoderSpec.from_config(config)
    assert spec == EncoderSpec("ViT-B/32", "openai", None, "bf16", "cpu")


@pytest.mark.skipif(
    not (MODELS_DIR / "fedclip-tiny.safetensors").is_file(), reason="not trained yet"
)
def test_the_shipped_model_loads():
    spec = EncoderSpec("fedclip-tiny", "fedclip-tiny", device="cpu")
    clip = FrozenClip.load(spec)
    assert 1 < clip.logit_scale < 101
    assert torch.isfinite(clip.encode_images(_pixels(clip))).all()
    assert len(fingerprint(spec)) == 64


@pytest.mark.skipif(not SURROGATE.is_dir(), reason="no shared data here")
def test_the_surrogate_reproduces_its_published_features():
    from safetensors.torch import load_file

    folder = SURROGATE / "surrogate"
    clip = FrozenClip.load(
        EncoderSpec(
            "fedclip-surrogate-s14",
            str(folder / "model.safetensors"),
            str(folder),
            "fp32",
            "cpu",
        )
    )
    classes = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    text = clip.encode_text([f"a picture of a {name}" for name in classes])
    want = load_file(SURROGATE / "features/pacs-surrogate/text.safetensors")["text"]
    assert F.cosine_similarity(text, want.float()).min() > 0.9999
    photos = sorted((SURROGATE / "pacs-mini/photo").glob("*/*"))[::35]
    pixels = [clip.preprocess(Image.open(f).convert("RGB")) for f in photos]
    images = clip.encode_images(torch.stack(pixels))
    reference = load_file(SURROGATE / "features/pacs-surrogate/photo.safetensors")
    closest = F.normalize(images) @ F.normalize(reference["image"].float()).T
    assert closest.max(dim=1).values.min() > 0.9995  # each is one of the 1,670
