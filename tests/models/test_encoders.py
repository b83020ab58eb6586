"""Laws of encoders: each image on its own, and the same network again from description and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from gen_unlearn.metrics.extractors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.encoders import build_encoder, encoder_architecture, load_encoder_weights
from gen_unlearn.models.resnet import Encoder

DIGIT, COLOUR = (1, 8, 8), (3, 32, 32)
VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CASES = [
    (EncoderConfig(width=8), DIGIT, 16),
    (EncoderConfig(width=8, stem_stride=2, depth=0), DIGIT, 16),
    (EncoderConfig(width=4, depth=2), (3, 33, 45), 16),
    (EncoderConfig(width=4, stem_stride=2), (2, 64, 64), 16),
    (EncoderConfig(kind="cifar-resnet18", width=4), COLOUR, 32),
    (EncoderConfig(kind="torchvision", name="mobilenet_v3_small"), (1, 32, 32), 1024),
    (EncoderConfig(kind="torchvision", name="shufflenet_v2_x0_5"), (3, 40, 24), 1024),
    (EncoderConfig(kind="transformers", weights="vit"), (1, 16, 16), 16),
    (EncoderConfig(kind="transformers", weights="resnet"), COLOUR, 12),
]


def draw(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def build(config: EncoderConfig, shape: tuple[int, int, int], seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder(json.loads(json.dumps(encoder_architecture(config, shape))))


def imagenet(images: Tensor) -> Tensor:
    return torchvision.transforms.functional.normalize((images + 1) / 2, IMAGENET_MEAN, IMAGENET_STD)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VIT, image_size=16, patch_size=8)).save_pretrained(folder / "vit")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(folder / "resnet")
    text = BertConfig(**VIT, vocab_size=8, max_position_embeddings=8)
    BertModel(text).save_pretrained(folder / "text")
    return folder


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].kind}-{case[0].name or case[0].weights or case[1]}")
def case(
    request: pytest.FixtureRequest, models: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[EncoderConfig, tuple[int, int, int], int]:
    monkeypatch.chdir(models)
    return request.param


def test_an_image_has_the_same_features_in_any_batch(case: Any) -> None:
    config, shape, dim = case
    # A published network with fresh weights blows rounding up, so that the law shows in float64 only.
    dtype = torch.float64 if config.kind == "torchvision" else torch.float32
    encoder = build(config, shape).to(dtype)
    images = draw(5, shape).to(dtype)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    encoder(images)  # without the statistics of a batch, a fresh network hardly tells images apart
    encoder.eval()
    with torch.inference_mode():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    assert together.shape == (5, dim)
    assert encoder.out_dim == dim
    assert together.dtype == dtype
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    assert together.std(dim=0).max() > 1e-4


def test_description_and_state_are_the_whole_encoder(case: Any) -> None:
    """Also if it is built without memory for its weights, as diffusers does."""
    config, shape, _ = case
    first = build(config, shape)
    first(draw(4, shape))
    description = encoder_architecture(config, shape)
    again = build(config, shape, seed=1)
    with init_empty_weights():
        empty = build_encoder(description)
    images = draw(3, shape, seed=1)
    with torch.inference_mode():
        expected = first.eval()(images)
        assert not torch.allclose(again.eval()(images), expected)
        again.load_state_dict(first.state_dict())
        empty.load_state_dict(first.state_dict(), assign=True)
        assert torch.equal(again(images), expected)
        assert torch.equal(empty.eval()(images), expected)


def test_describing_draws_nothing_and_building_follows_the_seed(case: Any) -> None:
    config, shape, _ = case
    torch.manual_seed(3)
    before = torch.get_rng_state()
    encoder_architecture(config, shape)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(build(config, shape).parameters(), build(config, shape).parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_parameter_learns(case: Any) -> None:
    config, shape, dim = case
    encoder = build(config, shape)
    assert encoder.training
    encoder.eval()  # no dropout, and no normalisation over the two values of a tiny feature map
    (encoder(draw(4, shape)) * draw(1, (dim,))).sum().backward()
    without = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert not without
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters())
    assert all(weight.grad.any() for weight in encoder.parameters())


def test_cifar_resnet18_has_the_published_size() -> None:
    encoder = build(EncoderConfig(kind="cifar-resnet18", width=64), COLOUR)
    head = nn.Linear(encoder.out_dim, 10)
    parameters = sum(weight.numel() for weight in encoder.parameters())
    assert parameters == 11_168_832
    assert parameters + sum(weight.numel() for weight in head.parameters()) == 11_173_962


@pytest.mark.parametrize("side", [1, 5, 8, 9, 28, 31, 64])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_cnn_takes_any_side(side: int, stem_stride: int) -> None:
    config = EncoderConfig(width=2, stem_stride=stem_stride)
    encoder = build(config, (1, side, side)).eval()
    with torch.inference_mode():
        assert encoder(draw(2, (1, side, side))).shape == (2, encoder.out_dim)
        assert min(encoder.layers(draw(1, (1, side, side))).shape[2:]) in (1, 2, 3, 4)


@pytest.mark.parametrize(("suffix", "classes"), [(".pth", 1000), (".pt", 10), (".safetensors", 10)])
def test_torchvision_weights_give_what_torchvision_gives(tmp_path: Path, suffix: str, classes: int) -> None:
    torch.manual_seed(5)
    published = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
    path = tmp_path / f"shufflenet{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(published.state_dict(), path)
    config = EncoderConfig(kind="torchvision", name="shufflenet_v2_x0_5", weights=str(path))
    encoder = build(config, (1, 32, 32)).eval()
    load_encoder_weights(encoder, config)
    images = draw(2, (1, 32, 32))
    published.fc = nn.Identity()
    with torch.inference_mode():
        expected = published.eval()(imagenet(images.expand(-1, 3, -1, -1)))
        torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=1e-4)


def test_old_names_of_densenet_are_understood(tmp_path: Path) -> None:
    published = torchvision.models.densenet121(weights=None).state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in published.items()
    }
    assert any(".norm.1." in key for key in old)
    save_file(old, tmp_path / "densenet.safetensors")
    config = EncoderConfig("torchvision", name="densenet121", weights=str(tmp_path / "densenet.safetensors"))
    encoder = build(config, COLOUR)
    load_encoder_weights(encoder, config)
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, published[name])


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_transformers_weights_give_what_transformers_gives(models: Path, name: str) -> None:
    folder = models / name
    shape = (3, 16, 16)
    config = EncoderConfig(kind="transformers", weights=str(folder))
    description = json.dumps(encoder_architecture(config, shape))
    assert str(models) not in description
    encoder = build(config, shape).eval()
    load_encoder_weights(encoder, config)
    images = draw(3, shape)
    model = (ViTModel if name == "vit" else ResNetModel).from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model(pixel_values=imagenet(images)).last_hidden_state
        expected = hidden[:, 0] if name == "vit" else hidden.mean(dim=(2, 3))
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["cnn", "cifar-resnet18"])
def test_own_weights_come_back_and_none_change_nothing(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "encoder.safetensors"
    first = build(EncoderConfig(kind, width=4), COLOUR)
    save_file(first.state_dict(), path)
    config = EncoderConfig(kind, width=4, weights=str(path))
    encoder = build(config, COLOUR, seed=1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    load_encoder_weights(encoder, EncoderConfig(kind, width=4))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    load_encoder_weights(encoder, config)
    for name, value in first.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "resnet"}, "kind of encoder, got 'resnet'; choose one of cnn, cifar-resnet18"),
        ({"width": 0}, "width >= 1.*width=0"),
        ({"depth": -1}, "depth >= 0.*depth=-1"),
        ({"stem_stride": 4}, "stem_stride 1 or 2.*stem_stride=4"),
        ({"name": "resnet18"}, "no name for an encoder of kind cnn, got 'resnet18'"),
        ({"kind": "cifar-resnet18", "depth": 2}, "no depth for an encoder of kind cifar-resnet18, got 2"),
        ({"kind": "torchvision"}, "name of a classifier of torchvision, got none"),
        ({"kind": "torchvision", "name": "resnet18", "width": 64}, "no width for an encoder"),
        ({"kind": "torchvision", "name": "resnet18", "weights": "a.bin"}, "ends in .safetensors or .pth"),
        ({"weights": "a.pth"}, "ends in .safetensors, got 'a.pth'"),
        ({"kind": "transformers"}, "local folder.*huggingface.co.*nothing is downloaded"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**settings)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet19", COLOUR, "got 'resnet19'; choose one of .*resnet18"),
        ("ResNet18", COLOUR, "choose one of resnet18"),
        ("fasterrcnn_resnet50_fpn", COLOUR, "choose one of"),
        ("squeezenet1_1", COLOUR, "ends in a linear layer.*got squeezenet1_1"),
        ("googlenet", COLOUR, "one head, got googlenet"),
        ("densenet121", (3, 8, 8), "images of 8 x 8 pixels, got densenet121"),
        ("resnet18", (2, 32, 32), "grey or RGB images for an encoder of kind torchvision, got 2 channels"),
        ("resnet18", (32, 32), r"\(channels, height, width\), got \(32, 32\)"),
    ],
)
def test_torchvision_mistakes_are_named(name: str, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder_architecture(EncoderConfig(kind="torchvision", name=name), shape)


def test_transformers_mistakes_are_named(models: Path, tmp_path: Path) -> None:
    for folder, shape, message in [
        (tmp_path, COLOUR, "found no config.json.*nothing is downloaded"),
        (models / "text", COLOUR, "model of images in .*got BertModel, which takes input_ids"),
        (models / "vit", COLOUR, "images of 32 x 32 pixels, got vit: .*16"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoder_architecture(EncoderConfig(kind="transformers", weights=str(folder)), shape)
    (tmp_path / "config.json").write_text((models / "vit" / "config.json").read_text())
    tensors = load_file(models / "vit" / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = EncoderConfig(kind="transformers", weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"1 tensors \(layernorm.weight\)"):
        load_encoder_weights(build(config, (3, 16, 16)), config)


def test_descriptions_are_checked() -> None:
    description = encoder_architecture(EncoderConfig(), DIGIT)
    with pytest.raises(ValueError, match=r"of kind cnn, got one without depth, image_shape; take it"):
        build_encoder({k: v for k, v in description.items() if k not in ("depth", "image_shape")})
    with pytest.raises(ValueError, match="got kind 'mlp'"):
        build_encoder({**description, "kind": "mlp"})


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    config = EncoderConfig(width=4, weights=str(path))
    encoder = build(config, DIGIT)
    with pytest.raises(ValueError, match=r"no such file; save the state dict.*nothing is downloaded"):
        load_encoder_weights(encoder, config)
    path.write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match=r"cannot be read as one \(SafetensorError\)"):
        load_encoder_weights(encoder, config)
    state = encoder.state_dict()
    missing = {key: value for key, value in state.items() if key != "layers.0.0.weight"}
    save_file({**missing, "more": torch.zeros(1)}, path)
    message = r"1 tensors missing \(layers.0.0.weight\) and 1 tensors unexpected \(more\)"
    with pytest.raises(ValueError, match=message):
        load_encoder_weights(encoder, config)
    save_file({**state, "layers.0.0.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"of another shape \(layers.0.0.weight\)"):
        load_encoder_weights(encoder, config)
    weights = EncoderConfig("torchvision", name="resnet18", weights=str(path))
    with pytest.raises(ValueError, match=r"expected a TorchvisionEncoder .* got ConvEncoder"):
        load_encoder_weights(encoder, weights)


def test_nothing_but_tensors_is_read(tmp_path: Path) -> None:
    path = tmp_path / "shufflenet.pth"
    config = EncoderConfig(kind="torchvision", name="shufflenet_v2_x0_5", weights=str(path))
    encoder = build(config, COLOUR)
    with pytest.raises(ValueError, match=r"https://download.pytorch.org/models/shufflenetv2_x0.5-.*pth"):
        load_encoder_weights(encoder, config)
    torch.save(encoder, path)
    with pytest.raises(ValueError, match=r"cannot be read as one \(UnpicklingError\)"):
        load_encoder_weights(encoder, config)
    torch.save({"state_dict": encoder.network.state_dict(), "epoch": 3}, path)
    with pytest.raises(ValueError, match="got something else around it"):
        load_encoder_weights(encoder, config)
    torch.save({**encoder.network.state_dict(), "aux.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 tensors unexpected \(aux.weight\)"):
        load_encoder_weights(encoder, config)
