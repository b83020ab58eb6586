"""Frozen denoisers of every kind: what goes in, what comes out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from small_backbones import (
    NAMES,
    TEMPLATE,
    conditional_unet,
    noise,
    plain_unet,
    spm_denoiser,
    spm_unet,
    text_denoiser,
    tiny_prompts,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_vae,
)
from torch import Tensor

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.frozen_denoiser import NULL_CLASS, FrozenDenoiser
from gen_unlearn.models.semiparametric_denoiser import SemiParametricDenoiser, freeze
from gen_unlearn.models.stacked_lora import Factors, adapted, factor_shapes, lora_layers
from gen_unlearn.models.text_conditioning import ClassPrompts, class_prompts
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input

LABELS = np.array([0, 2, NULL_CLASS, 1, 2])
TIME = torch.tensor(40)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer") / "words"


def test_without_an_autoencoder_images_are_what_is_denoised() -> None:
    denoiser, images = FrozenDenoiser(plain_unet(), noise(), 3), some_images()
    encoded = denoiser.encode(images)
    assert denoiser.sample_shape == (1, 8, 8)
    assert denoiser.image_shape == (8, 8, 1)
    assert torch.equal(encoded, to_model_input(images))
    assert torch.equal(denoiser.decode(encoded), encoded)
    assert not denoiser.has_null_class
    assert not any(part.requires_grad for part in denoiser.network.parameters())


@pytest.mark.parametrize("shift", [None, 0.25])
def test_latents_are_modes_shifted_and_scaled(words: Path, shift: float | None) -> None:
    vae, images = tiny_vae(shift_factor=shift), some_images(11)
    denoiser = FrozenDenoiser(conditional_unet(), noise(), 3, vae, tiny_prompts(words))
    encoded = denoiser.encode(images)
    with torch.no_grad():
        modes = vae.encode(to_model_input(images)).latent_dist.mode()
        expected = vae.decode(modes).sample
    assert denoiser.image_shape == (8, 8, 1)
    assert encoded.dtype == torch.float32
    assert encoded.shape == (11, *denoiser.sample_shape)
    torch.testing.assert_close(encoded, (modes - (shift or 0)) * 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser.decode(encoded), expected, rtol=0, atol=1e-5)
    assert torch.equal(denoiser.encode(images), encoded), "modes are not drawn"


def test_classes_are_told_by_embeddings_or_not_at_all() -> None:
    noisy = draw(5, 1, 8, 8)
    with torch.no_grad():
        network = plain_unet(num_class_embeds=4)
        denoiser = FrozenDenoiser(network, noise(), 3)
        assert denoiser.has_null_class
        expected = network(noisy, TIME, torch.tensor([0, 2, 3, 1, 2])).sample
        assert torch.equal(denoiser.predict(noisy, TIME, LABELS), expected)
        alone = FrozenDenoiser(plain_unet(), noise(), 3)
        assert torch.equal(alone.predict(noisy, TIME, LABELS), alone.predict(noisy, TIME, LABELS * 0))
    bare = FrozenDenoiser(plain_unet(num_class_embeds=3), noise(), 3)
    with pytest.raises(ValueError, match="has no null class: set guidance_scale and label_dropout"):
        bare.predict(noisy, TIME, LABELS)


def test_prompts_are_those_of_the_text_encoder(words: Path) -> None:
    tokenizer = tiny_tokenizer(words)
    encoder = tiny_text_encoder(tokenizer)
    prompts = class_prompts(encoder, tokenizer, NAMES, TEMPLATE)
    texts = [TEMPLATE.format(name) for name in NAMES]
    inputs = tokenizer([*texts, ""], padding="max_length", max_length=10, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(inputs.input_ids).last_hidden_state
        denoiser = FrozenDenoiser(conditional_unet(), noise(), 3, tiny_vae(), prompts)
        noisy = draw(5, 4, 4, 4)
        told = denoiser.network(noisy, TIME, encoder_hidden_states=expected[[0, 2, 3, 1, 2]]).sample
        assert torch.equal(denoiser.predict(noisy, TIME, LABELS), told)
    assert torch.equal(prompts.embeddings, expected)
    assert denoiser.has_null_class
    assert (told[0] - denoiser.predict(noisy, TIME, LABELS[::-1].copy())[0]).abs().max() > 1e-5


def test_saved_prompts_are_loaded_to_the_bit(words: Path, tmp_path: Path) -> None:
    prompts = tiny_prompts(words)
    prompts.save_pretrained(tmp_path / "prompts")
    loaded = ClassPrompts.from_pretrained(tmp_path / "prompts", local_files_only=True)
    assert torch.equal(loaded.embeddings, prompts.embeddings)
    assert list(loaded.config.prompts) == ["a photo of a cat", "a photo of a dog", "a photo of a car"]


def test_prompts_that_say_nothing_are_refused(words: Path) -> None:
    tokenizer = tiny_tokenizer(words)
    encoder = tiny_text_encoder(tokenizer)
    with pytest.raises(ValueError, match=r"one \{\} for the class, got 'a photo'"):
        class_prompts(encoder, tokenizer, NAMES, "a photo")
    with pytest.raises(ValueError, match="got 'a photo of a 1' and 'a photo of a 2'"):
        class_prompts(encoder, tokenizer, ("1", "2"), TEMPLATE)
    with pytest.raises(ValueError, match="got '' and ''"):
        class_prompts(encoder, tokenizer, ("",), "{}")


def test_what_is_no_plain_denoiser_is_refused(words: Path) -> None:
    prompts = tiny_prompts(words)
    with pytest.raises(ValueError, match=r"3 classes of the images.*got one of 2 class embeddings"):
        FrozenDenoiser(plain_unet(num_class_embeds=2), noise(), 3)
    with pytest.raises(ValueError, match="got one of 1000 class embeddings"):
        FrozenDenoiser(plain_unet(num_class_embeds=1000), noise(), 3)
    with pytest.raises(ValueError, match="takes 1 and gives 2"):
        FrozenDenoiser(plain_unet(out_channels=2), noise(), 3)
    with pytest.raises(ValueError, match="UNet2DConditionModel without prompts"):
        FrozenDenoiser(conditional_unet(), noise(), 3, tiny_vae())
    with pytest.raises(ValueError, match="UNet2DModel with prompts"):
        FrozenDenoiser(plain_unet(), noise(), 3, None, prompts)
    with pytest.raises(ValueError, match="prompts of 4 classes, got 3"):
        FrozenDenoiser(conditional_unet(), noise(), 4, tiny_vae(), prompts)
    with pytest.raises(ValueError, match="prompts in 8 dimensions, which the denoiser attends to, got 16"):
        FrozenDenoiser(conditional_unet(cross_attention_dim=8), noise(), 3, tiny_vae(), prompts)
    extras = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 28}
    sdxl = conditional_unet(addition_embed_type="text_time", **extras)
    with pytest.raises(ValueError, match="addition_embed_type, as SDXL has"):
        FrozenDenoiser(sdxl, noise(), 3, tiny_vae(), prompts)
    with pytest.raises(ValueError, match=r"autoencoder of 4 latent channels.*got one of 2"):
        FrozenDenoiser(conditional_unet(), noise(), 3, tiny_vae(latent_channels=2), prompts)


def test_the_digest_knows_everything_that_adapters_depend_on(words: Path) -> None:
    denoiser = text_denoiser(words)
    assert text_denoiser(words).digest == denoiser.digest
    parts = (conditional_unet(), noise(), 3, tiny_vae(), tiny_prompts(words))
    other = tiny_prompts(words)
    other.embeddings[1, 0, 0] += 1
    moved = conditional_unet()
    moved.conv_in.bias.data[0] += 1
    changes = {
        0: moved,
        1: DDPMScheduler(num_train_timesteps=100, prediction_type="v_prediction"),
        3: tiny_vae(scaling_factor=0.25),
        4: other,
    }
    digests = {
        FrozenDenoiser(*(changed if place == index else part for index, part in enumerate(parts))).digest  # type: ignore[arg-type]
        for place, changed in changes.items()
    }
    shorter = FrozenDenoiser(parts[0], DDPMScheduler(num_train_timesteps=50), 3, *parts[3:]).digest
    assert len(digests | {denoiser.digest, shorter}) == 6


SPM_KINDS = [{}, {"fusion_type": "additive"}, {"num_label_slots": 3}, {"pixel_fusion_width": 0.3}]


@pytest.mark.parametrize("options", SPM_KINDS, ids=["dot-product", "additive", "labels", "pixels"])
def test_semi_parametric_denoiser_predicts_as_its_pipeline(
    options: dict[str, object], tiny_store: ExemplarStore
) -> None:
    unet, noisy, seeds = spm_unet(**options), draw(5, 1, 8, 8), [5, 5, 5, 6, 7]
    pipeline = SemiParametricDDPMPipeline(unet, noise(), tiny_store)
    asked = [None if label == NULL_CLASS else int(label) for label in LABELS]
    expected = pipeline.noise_predictor(asked, 4, seeds, guidance_scale=1)(noisy, TIME)
    denoiser = SemiParametricDenoiser(unet, noise(), 3)
    view = denoiser.with_exemplars(tiny_store, 4, seeds)
    with torch.no_grad():
        predicted = view.predict(noisy, TIME, LABELS)
        assert torch.equal(predicted, expected)
        twice = view.predict(torch.cat([noisy, noisy]), TIME, np.append(LABELS, LABELS))
        torch.testing.assert_close(twice, torch.cat([expected, expected]), rtol=0, atol=1e-5)
        alone = denoiser.predict(noisy, TIME, LABELS)
    torch.testing.assert_close(alone[2], expected[2], rtol=0, atol=1e-5)
    assert (alone - expected)[[0, 1, 3, 4]].abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_deleted_exemplars_are_not_looked_at(tiny_store: ExemplarStore, few_images: IndexedImages) -> None:
    denoiser, noisy = spm_denoiser(), draw(5, 1, 8, 8)
    denoiser.with_exemplars(tiny_store, 4, [1])
    kept = ExemplarStore.from_images(few_images)
    gone = np.flatnonzero(tiny_store.labels == 2)
    forgotten = ForgetSet.from_ids(tiny_store, tiny_store.ids[np.union1d(gone, [0])], "a test")
    tiny_store.delete(forgotten)
    kept.delete(forgotten)
    with torch.no_grad():
        after = denoiser.with_exemplars(tiny_store, 30, [1]).predict(noisy, TIME, LABELS)
        fresh = spm_denoiser().with_exemplars(kept, 30, [1]).predict(noisy, TIME, LABELS)
        null = denoiser.predict(noisy, TIME, np.full(5, NULL_CLASS))
    torch.testing.assert_close(after, fresh, rtol=0, atol=1e-5)
    assert denoiser._bank is not None
    assert len(denoiser._bank.ids) == len(tiny_store)
    torch.testing.assert_close(after[[1, 4]], null[[1, 4]], rtol=0, atol=1e-5)


def test_adapters_of_a_semi_parametric_denoiser_sit_where_no_exemplar_passes() -> None:
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    denoiser = spm_denoiser(**blocks)
    ends = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj", "conv_in", "conv_out")
    layers = lora_layers(denoiser.network, ends, denoiser.adaptable)
    assert any(name.startswith("unet.mid_block.attentions.0") for name in layers)
    assert any(name.startswith("unet.mid_block.resnets.1") for name in layers)
    assert any(name.startswith("unet.up_blocks.0.attentions") for name in layers)
    assert "unet.conv_out" in layers
    assert not any(name.startswith(("unet.down", "unet.mid_block.resnets.0", "fusion")) for name in layers)
    factors = {}
    for name, layer in layers.items():
        down, up = factor_shapes(layer, 2)
        factors[name] = Factors(torch.ones(1, *down), torch.ones(1, *up))
    before = denoiser.tokens(some_images())
    with torch.no_grad():
        plain = denoiser.predict(draw(5, 1, 8, 8), TIME, LABELS)
        with adapted(layers, factors, 1.0):
            during = denoiser.tokens(some_images())
            changed = denoiser.predict(draw(5, 1, 8, 8), TIME, LABELS)
    assert torch.equal(during.keys, before.keys)
    assert torch.equal(during.values, before.values)
    assert (changed - plain).abs().max() > 1e-3
    seen: list[object] = []
    for layer in layers.values():
        layer.register_forward_hook(lambda module, *_: seen.append(module))
    denoiser.tokens(some_images())
    assert not seen, "an adapted layer takes part in encoding exemplars"


def test_mistakes_with_semi_parametric_networks_are_refused(tiny_store: ExemplarStore) -> None:
    with pytest.raises(ValueError, match="at least 4 label slots, got one of 3"):
        SemiParametricDenoiser(spm_unet(num_label_slots=3), noise(), 4)
    other = DDPMScheduler(num_train_timesteps=100, beta_end=0.1)
    with pytest.raises(ValueError, match="noise schedule that the network's pixel fusion was made for"):
        SemiParametricDenoiser(spm_unet(pixel_fusion_width=0.3), other, 3)
    with pytest.raises(ValueError, match="a semi-parametric network alone"):
        freeze(spm_unet(), noise(), 3, tiny_vae(), None)
    with pytest.raises(ValueError, match="at least 1 exemplar per class, got 0"):
        spm_denoiser().with_exemplars(tiny_store, 0, [1])
    with pytest.raises(ValueError, match="rows for 3 exemplar seeds, or a multiple, got 5"):
        spm_denoiser().with_exemplars(tiny_store, 4, [1, 2, 3]).predict(draw(5, 1, 8, 8), TIME, LABELS)
    assert isinstance(freeze(spm_unet(), noise(), 3), SemiParametricDenoiser)
    plain = freeze(plain_unet(), noise(), 3)
    assert plain.with_exemplars(tiny_store, 4, [1]) is plain
