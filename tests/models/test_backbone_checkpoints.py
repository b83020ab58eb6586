"""Denoisers from local folders: what loads, what is refused, and that nothing of a folder is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from small_backbones import NAMES, conditional_unet, noise, plain_unet, save_text_pipeline, spm_unet

from gen_unlearn.models.backbone_checkpoints import load_backbone_checkpoint
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.models.semiparametric_denoiser import SemiParametricDenoiser
from gen_unlearn.repro import digest_state

GREY = (8, 8, 1)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder: Path, **settings: object) -> FrozenDenoiser:
    return load_backbone_checkpoint(folder, NAMES, GREY, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text-to-image") / "pipeline"
    save_text_pipeline(folder)
    return folder


@pytest.fixture
def text(saved_text: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_text, tmp_path / "text"))


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    plain_unet(num_class_embeds=4).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_folder_of_a_unet_takes_the_noise_schedule_of_the_caller(unet: Path) -> None:
    schedule = noise()
    denoiser = load(unet, noise=schedule)
    assert denoiser.noise is schedule
    assert denoiser.has_null_class
    expected = digest_state(plain_unet(num_class_embeds=4).state_dict())
    assert digest_state(denoiser.network.state_dict()) == expected
    with pytest.raises(ValueError, match=r"expected the folder scheduler in .*unet"):
        load(unet)


@pytest.mark.parametrize("embeddings", [None, 3, 4])
def test_a_pipeline_brings_its_noise_schedule(tmp_path: Path, embeddings: int | None) -> None:
    ddim = DDIMScheduler(
        num_train_timesteps=70,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    DDPMPipeline(plain_unet(num_class_embeds=embeddings), ddim).save_pretrained(tmp_path / "pipeline")
    denoiser = load(tmp_path / "pipeline", noise=noise())
    assert type(denoiser.noise).__name__ == "DDPMScheduler"
    torch.testing.assert_close(denoiser.noise.alphas_cumprod, ddim.alphas_cumprod)
    assert denoiser.noise.config.prediction_type == "v_prediction"
    assert denoiser.noise.config.clip_sample
    assert denoiser.has_null_class == (embeddings == 4)


def test_a_semi_parametric_network_is_known_too(tmp_path: Path) -> None:
    spm_unet().save_pretrained(tmp_path)
    assert isinstance(load(tmp_path, noise=noise()), SemiParametricDenoiser)


def test_text_to_image_pipelines_load_with_their_prompts(text: Path) -> None:
    denoiser = load(text)
    assert denoiser.image_shape == GREY
    assert denoiser.prompts is not None
    assert list(denoiser.prompts.config.prompts) == [f"a photo of a {name}" for name in NAMES]
    assert denoiser.noise.config.prediction_type == "v_prediction"
    assert denoiser.noise.config.beta_schedule == "scaled_linear"
    assert not denoiser.noise.config.clip_sample, "latents are not within [-1, 1]"
    other = load(text, prompt="a {} of a photo")
    assert not torch.equal(other.prompts.embeddings[0], denoiser.prompts.embeddings[0])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("unet/config.json", "expected config.json in .*unet, found none; copy the whole folder"),
        (f"unet/{WEIGHTS}", f"expected {WEIGHTS} in .*unet, found no weights"),
        (f"vae/{WEIGHTS}", f"expected {WEIGHTS} in .*vae"),
        ("text_encoder/model.safetensors", "expected model.safetensors in .*text_encoder"),
        ("text_encoder/config.json", "expected config.json in .*text_encoder"),
        ("scheduler/scheduler_config.json", "expected scheduler_config.json in .*scheduler"),
        ("scheduler", "expected the folder scheduler in"),
        ("tokenizer", "expected vocab.json in .*tokenizer"),
        ("model_index.json", "expected config.json or model_index.json of a pipeline in"),
    ],
)
def test_what_is_missing_is_named(text: Path, lost: str, message: str) -> None:
    target = text / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(ValueError, match=message):
        load(text)


def test_a_text_to_image_unet_alone_lacks_its_text_encoder(tmp_path: Path) -> None:
    conditional_unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a text_encoder beside the text-to-image UNet"):
        load(tmp_path, noise=noise())


def test_weights_that_may_run_code_are_not_read(unet: Path) -> None:
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found diffusion_pytorch_model\.bin; save the model with"):
        load(unet, noise=noise())


def test_code_of_a_folder_is_not_run(text: Path) -> None:
    (text / "unet" / "mine.py").write_text("raise SystemExit('run')\n")
    edit(text / "model_index.json", unet=["mine", "MyUNet"])
    with pytest.raises(ValueError, match=r"got unet \(MyUNet\)"):
        load(text)
    edit(text / "model_index.json", unet=["mine", "UNet2DConditionModel"])
    edit(text / "unet" / "config.json", auto_map={"AutoModel": "mine.MyUNet"}, _class_name="MyUNet")
    with pytest.raises(ValueError, match="got MyUNet"):
        load(text)
    edit(text / "unet" / "config.json", _class_name="UNet2DConditionModel")
    assert load(text).image_shape == GREY


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("text_encoder_2", "CLIPTextModelWithProjection"),
        ("vqvae", "VQModel"),
        ("controlnet", "ControlNetModel"),
    ],
)
def test_other_pipelines_are_refused(text: Path, part: str, kind: str) -> None:
    edit(text / "model_index.json", **{part: ["diffusers", kind]})
    with pytest.raises(ValueError, match=rf"got {part} \({kind}\); choose one that denoises with a UNet"):
        load(text)


def test_flows_are_refused(text: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(text / "scheduler")
    with pytest.raises(
        ValueError, match="got FlowMatchEulerDiscreteScheduler; choose a denoiser that predicts"
    ):
        load(text)
    edit(text / "scheduler" / "scheduler_config.json", beta_schedule="strange")
    with pytest.raises(ValueError, match=r"cannot read .*scheduler"):
        load(text)


def test_damaged_files_are_named(unet: Path) -> None:
    complete = load_file(unet / WEIGHTS)
    save_file({name: part for name, part in complete.items() if name != "conv_in.weight"}, unet / WEIGHTS)
    with pytest.raises(ValueError, match=r"got none for 1 tensors \(conv_in.weight\), which would be random"):
        load(unet, noise=noise())
    (unet / WEIGHTS).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"cannot read .*unet: "):
        load(unet, noise=noise())
    save_file(complete | {"conv_in.weight": torch.zeros(3, 3)}, unet / WEIGHTS)
    with pytest.raises(ValueError, match=r"cannot read .*unet: "):
        load(unet, noise=noise())
    (unet / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        load(unet, noise=noise())


def test_what_does_not_fit_the_data_is_refused(unet: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected images of 8 x 8 x 1 .* got 32 x 32 x 3; set data.image_size to 8"
    ):
        load_backbone_checkpoint(unet, NAMES, (32, 32, 3), noise())
    with pytest.raises(ValueError, match="unet: expected a denoiser of the 5 classes of the images"):
        load_backbone_checkpoint(unet, ("a", "b", "c", "d", "e"), GREY, noise())
    with pytest.raises(
        ValueError, match=r"expected a local folder .* found none at .*nowhere; save one there"
    ):
        load(tmp_path / "nowhere")
