import hashlib
import json
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gen_unlearn.metrics.extractors.choice import EXTRACTORS, load_extractor
from gen_unlearn.metrics.extractors.digits import digits_features
from gen_unlearn.metrics.extractors.inception import (
    CleanFidPreprocessing,
    clean_fid_features,
    torchmetrics_features,
)
from gen_unlearn.metrics.extractors.module import ModuleFeatures
from gen_unlearn.metrics.extractors.preprocessing import (
    IMAGENET_224,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
)
from gen_unlearn.metrics.extractors.torchscript import sscd_features, torchscript_features
from gen_unlearn.metrics.extractors.vision_model import dinov2_features, vision_model_features
from gen_unlearn.metrics.features import FeatureExtractor, MeasurementProtocol, extract_features
from gen_unlearn.metrics.weights import INCEPTION_PYTORCH, INCEPTION_TORCHSCRIPT, SSCD_DISC_MIXUP, file_sha256
from gen_unlearn.training.judge_config import JudgeConfig

CPU = torch.device("cpu")
UNCHANGED = Preprocessing(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every socket an error: nothing here may ask the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Two RGB images of 32 x 40 pixels, as files and as an array in the order of the files."""
    images = noise(2, 32, 40, 3)
    images[1] = np.arange(40, dtype=np.uint8)[None, :, None] * 6
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return tmp_path, images


def clean_fid_pipeline(folder: Path, model: Callable[..., Any], mode: str) -> np.ndarray:
    from cleanfid.fid import get_folder_features

    return get_folder_features(
        str(folder), model=model, mode=mode, device=CPU, num_workers=0, batch_size=2, verbose=False
    )


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2048, 9, stride=80)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(images)).mean(dim=(2, 3), keepdim=True)


class TinyInception(nn.Module):
    """What clean-fid asks of the TorchScript file: `layers`, and a resize inside `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        resized = torch.nn.functional.interpolate(images, [299, 299], mode="bilinear", align_corners=False)
        return self.layers((resized - 128) / 128)


def save_script(module: nn.Module, path: Path) -> Path:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.jit.script(module.eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def tiny_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_script(TinyInception(), tmp_path_factory.mktemp("weights") / INCEPTION_TORCHSCRIPT.name)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_torchscript_inception_is_clean_fids(mode: Any, tiny_inception: Path, folder: Any) -> None:
    from cleanfid.inception_torchscript import InceptionV3W

    file = replace(INCEPTION_TORCHSCRIPT, sha256=file_sha256(tiny_inception))
    extractor = clean_fid_features(mode, tiny_inception, file=file)
    library = InceptionV3W(str(tiny_inception.parent), download=False, resize_inside=mode != "clean")
    path, images = folder
    expected = clean_fid_pipeline(path, library, mode)
    assert np.ptp(expected, axis=0).max() > 0.1, "the two images are told apart"
    np.testing.assert_allclose(extract_features(extractor, images), expected, rtol=1e-5, atol=1e-5)
    renamed = path / "renamed.bin"
    renamed.write_bytes(tiny_inception.read_bytes())
    assert clean_fid_features(mode, renamed, file=file).digest == extractor.digest


@pytest.fixture(scope="module")
def pytorch_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the real architecture, where torch's hub looks for the published ones."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    class Untrained(Network):
        def load_state_dict(self, *_: Any, **__: Any) -> None:  # type: ignore[override]
            return None

    path = tmp_path_factory.mktemp("torch-home") / "hub" / "checkpoints" / INCEPTION_PYTORCH.name
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({}, path)
    network = Untrained("untrained", ["2048"], str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
def test_pytorch_inception_is_clean_fids(
    pytorch_inception: Path, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleanfid.features import build_feature_extractor

    file = replace(INCEPTION_PYTORCH, sha256=file_sha256(pytorch_inception))
    before = torch.get_rng_state()
    extractor = clean_fid_features("legacy_pytorch", pytorch_inception, file=file)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setenv("TORCH_HOME", str(pytorch_inception.parents[2]))
    library = build_feature_extractor("legacy_pytorch", device=CPU, use_dataparallel=False)
    path, images = folder
    expected = clean_fid_pipeline(path, library, "legacy_pytorch")
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(
        extract_features(extractor, images), expected, rtol=1e-4, atol=1e-4 * expected.max()
    )


def test_torchmetrics_inception_is_that_of_its_metric(pytorch_inception: Path, folder: Any) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    file = replace(INCEPTION_PYTORCH, sha256=file_sha256(pytorch_inception))
    before = torch.get_rng_state()
    extractor = torchmetrics_features(pytorch_inception, file=file)
    assert torch.equal(torch.get_rng_state(), before)
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(pytorch_inception))
    _, images = folder
    metric.update(torch.from_numpy(images).permute(0, 3, 1, 2), real=True)
    features = extract_features(extractor, images)
    np.testing.assert_allclose(metric.real_features_sum.numpy(), features.sum(axis=0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow", "legacy_pytorch"])
@pytest.mark.parametrize("shape", [(32, 40, 3), (299, 299, 3), (400, 310, 3)])
def test_inputs_are_clean_fids_bit_by_bit(mode: Any, shape: tuple[int, int, int]) -> None:
    from cleanfid.resize import build_resizer

    image = noise(1, *shape)[0]
    with warnings.catch_warnings():  # clean-fid silences every warning of the process
        expected = torch.from_numpy(build_resizer(mode)(image).astype(np.float32)).permute(2, 0, 1)
    if mode == "legacy_pytorch":
        expected = 2 * (expected / 255) - 1
    assert torch.equal(CleanFidPreprocessing(mode)(image), expected)


def test_clean_fid_leaves_warnings_alone(pytorch_inception: Path) -> None:
    before = list(warnings.filters)
    file = replace(INCEPTION_PYTORCH, sha256=file_sha256(pytorch_inception))
    clean_fid_features("legacy_pytorch", pytorch_inception, file=file)
    assert list(warnings.filters) == before


def test_grey_images_are_repeated(tiny_inception: Path) -> None:
    file = replace(INCEPTION_TORCHSCRIPT, sha256=file_sha256(tiny_inception))
    grey = noise(1, 12, 14, 1)[0]
    extractors: list[FeatureExtractor] = [
        clean_fid_features("clean", tiny_inception, file=file),
        ModuleFeatures(nn.Identity().eval(), "pixels", 3 * 224 * 224, IMAGENET_224),
    ]
    for extractor in extractors:
        assert torch.equal(extractor.preprocess(grey), extractor.preprocess(grey.repeat(3, axis=2)))
        for wrong in (grey[..., 0], grey.repeat(4, axis=2), grey / 255):
            with pytest.raises(ValueError, match="expected a uint8 image"):
                extractor.preprocess(wrong)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(20, 31), (96, 64), 17, 50, None])
def test_preprocessing_is_torchvisions(interpolation: Any, size: Any) -> None:
    from torchvision import transforms

    image = noise(1, 33, 48, 3)[0]
    preprocessing = Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, interpolation)
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if size is not None:
        steps.insert(0, transforms.Resize(size, mode))
    expected = transforms.Compose(steps)(Image.fromarray(image))
    np.testing.assert_allclose(preprocessing(image).numpy(), expected.numpy(), atol=1e-6)


def test_any_module_is_an_extractor() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match="training mode"):
        ModuleFeatures(module, "mine", 5, UNCHANGED)
    extractor = ModuleFeatures(module.eval(), "mine", 5, UNCHANGED)
    images = noise(3, 8, 9, 3)
    expected = module(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)[:, :, 0, 0]
    np.testing.assert_allclose(extract_features(extractor, images), expected.detach().numpy(), atol=1e-5)
    protocol = MeasurementProtocol.of(extractor, images[0])
    assert (protocol.extractor, protocol.resize, protocol.input_shape) == ("mine", "none", (3, 8, 9))
    with pytest.raises(ValueError, match=r"\(1, 4\) from mine, got \(1, 5, 1, 1\)"):
        extract_features(ModuleFeatures(module, "mine", 4, UNCHANGED), images[:1])


def test_the_digest_covers_weights_architecture_and_preprocessing() -> None:
    def digest(module: nn.Module, preprocessing: Preprocessing = UNCHANGED) -> str:
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        return ModuleFeatures(module.eval(), "mine", 5, preprocessing).digest

    first = digest(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()))
    assert digest(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())) == first
    other_weights = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    others = {
        ModuleFeatures(other_weights, "mine", 5, UNCHANGED).digest,
        digest(nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU())),
        digest(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), replace(UNCHANGED, size=16)),
        digest(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), replace(UNCHANGED, std=(0.5, 0.5, 0.4))),
    }
    assert len(others | {first}) == 5


class TinyCopyDetector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 512, 16, stride=16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).mean(dim=(2, 3))


def test_torchscript_files_run_with_the_users_preprocessing(tmp_path: Path) -> None:
    path = save_script(TinyCopyDetector(), tmp_path / "net.pt")
    preprocessing = Preprocessing((32, 48), IMAGENET_MEAN, IMAGENET_STD)
    extractor = torchscript_features(path, preprocessing)
    assert extractor.dim == 512
    assert "not comparable with Inception FID" in extractor.name
    images = noise(2, 40, 40, 3)
    inputs = torch.stack([preprocessing(image) for image in images])
    expected = torch.jit.load(str(path))(inputs).detach().numpy()
    np.testing.assert_allclose(extract_features(extractor, images), expected, atol=1e-5)
    assert torchscript_features(path, IMAGENET_224).digest != extractor.digest


def test_torchscript_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--weights FILE"):
        torchscript_features(tmp_path / "missing.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"expected a TorchScript file, got .*broken.pt"):
        torchscript_features(broken)
    path = save_script(TinyCopyDetector(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\)"):
        torchscript_features(path, Preprocessing((8, 8), IMAGENET_MEAN, IMAGENET_STD))


def test_sscd_sees_288_pixels_and_has_unit_length(tmp_path: Path) -> None:
    path = save_script(TinyCopyDetector(), tmp_path / "sscd.pt")
    extractor = sscd_features(path, file=replace(SSCD_DISC_MIXUP, sha256=file_sha256(path)))
    images = noise(2, 32, 48, 3)
    assert MeasurementProtocol.of(extractor, images[0]).input_shape == (3, 288, 432)
    features = extract_features(extractor, images)
    assert features.shape == (2, 512)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert extract_features(extractor, images[:1]) @ features[0] == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("models") / "tiny-dinov2"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42}
    Dinov2Model(Dinov2Config(**sizes, patch_size=14)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 48},
        crop_size={"height": 42, "width": 42},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    ).save_pretrained(folder)
    return folder


def test_vision_model_is_transformers_own_pipeline(dinov2: Path) -> None:
    from torchvision import transforms
    from transformers import Dinov2Model

    extractor = vision_model_features(dinov2)
    assert extractor.dim == 16
    assert extractor.name == "dinov2 tiny-dinov2 (not comparable with Inception FID)"
    assert '"shortest_edge": 48' in extractor.resize
    images = noise(2, 60, 80, 3)
    pipeline = transforms.Compose(
        [
            transforms.Resize(48, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(42),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    inputs = torch.stack([pipeline(Image.fromarray(image)) for image in images])
    np.testing.assert_allclose(extractor.preprocess(images[0]).numpy(), inputs[0].numpy(), atol=1e-5)
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(dinov2)(inputs).pooler_output.numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(extract_features(extractor, images), expected, atol=1e-4)


def test_dinov2_sees_224_pixels_without_a_crop(dinov2: Path) -> None:
    extractor = dinov2_features(dinov2)
    image = noise(1, 30, 60, 3)[0]
    assert extractor.preprocess(image).shape == (3, 224, 224)
    assert extractor.digest != vision_model_features(dinov2).digest
    assert extract_features(extractor, image[None]).shape == (1, 16)


def test_models_without_a_class_token_are_averaged(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel, SwinConfig, SwinModel

    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    preprocessing = replace(IMAGENET_224, size=(32, 32))
    images = noise(2, 32, 32, 3)
    inputs = torch.stack([preprocessing(image) for image in images])
    for model in (SwinModel(swin).eval(), ResNetModel(resnet).eval()):
        model.save_pretrained(tmp_path / model.config.model_type)
        extractor = vision_model_features(tmp_path / model.config.model_type, preprocessing)
        with torch.inference_mode():
            pooled = model(inputs).pooler_output.flatten(1).numpy()
        np.testing.assert_allclose(extract_features(extractor, images), pooled, atol=1e-5)


def test_vision_model_mistakes_are_named(dinov2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(
        ValueError, match=r"no config.json, preprocessor_config.json, \*.safetensors in .*--w"
    ):
        vision_model_features(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((dinov2 / name).read_bytes())
    tensors = load_file(dinov2 / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors \(layernorm.weight\), which would be random"):
        vision_model_features(tmp_path)


def test_code_in_a_model_folder_is_never_run(dinov2: Path, tmp_path: Path) -> None:
    for file in dinov2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "mine.py").write_text("raise AssertionError('code of the folder was run')")
    mapped = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": mapped}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        vision_model_features(tmp_path)


def test_the_digits_classifier_is_the_same_whatever_the_threads() -> None:
    config, digests = JudgeConfig(epochs=1, width=8), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        digests.append(digits_features(config=config).digest)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert digests[0] == digests[1]


def test_digits_features_tell_digits_apart() -> None:
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    extractor = load_extractor("digits")
    assert "not comparable with Inception FID" in extractor.name
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    features = extract_features(extractor, images)
    assert features.shape == (1797, 64)
    nearest = KNeighborsClassifier(1).fit(features[:900], labels[:900])
    assert nearest.score(features[900:], labels[900:]) > 0.99
    for wrong in (noise(1, 16, 16, 1)[0], noise(1, 8, 8, 3)[0]):
        with pytest.raises(ValueError, match=r"\(8, 8, 1\) for the digits"):
            extractor.preprocess(wrong)


def test_extractors_load_by_name(dinov2: Path, tmp_path: Path) -> None:
    script = save_script(TinyCopyDetector(), tmp_path / "net.pt")
    assert load_extractor("random-conv").dim == 64
    assert load_extractor("vision-model", dinov2).digest == vision_model_features(dinov2).digest
    assert load_extractor("dinov2", dinov2).digest == dinov2_features(dinov2).digest
    assert load_extractor("torchscript", script).digest == torchscript_features(script).digest
    small = Preprocessing((32, 32), IMAGENET_MEAN, IMAGENET_STD)
    assert load_extractor("torchscript", script, "cpu", small).resize == small.resize


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if name.startswith(("inception", "sscd"))])
def test_published_weights_are_never_guessed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GEN_UNLEARN_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(ValueError, match=r"https://.*--weights FILE"):
        load_extractor(name)
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=hashlib.sha256(b"other weights").hexdigest()):
        load_extractor(name, wrong)


def test_choices_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inception-clean, .*random-conv, got 'inception'"):
        load_extractor("inception")
    for name in ("digits", "random-conv"):
        with pytest.raises(ValueError, match=f"no weights for {name}"):
            load_extractor(name, tmp_path)
    for name in ("torchscript", "vision-model", "dinov2"):
        with pytest.raises(ValueError, match=f"weights for {name}, got none"):
            load_extractor(name)
    with pytest.raises(ValueError, match="no preprocessing for random-conv"):
        load_extractor("random-conv", preprocessing=UNCHANGED)
