"""LoRA adapters on every kind of frozen denoiser: equal bits however they are fit, and they learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_backbones import (
    NAMES,
    conditional_unet,
    noise,
    plain_unet,
    spm_denoiser,
    text_denoiser,
    tiny_prompts,
    tiny_vae,
)
from small_denoisers import pixel_jobs, pixel_records

from gen_unlearn.adapters.companions import companions
from gen_unlearn.adapters.family import AdapterState, FitJob, HeadShape, digest_adapter
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.models.frozen_denoiser import NULL_CLASS, FrozenDenoiser
from gen_unlearn.models.stacked_lora import DOWN, UP, Factors, adapted, lora_layers
from gen_unlearn.repro import torch_generator

SHAPE = HeadShape(features=1, classes=3)
TARGETS = ("to_q", "to_out.0", "conv1", "time_emb_proj")
Make = Callable[[Path], FrozenDenoiser]

KINDS: dict[str, Make] = {
    "unconditional": lambda _: FrozenDenoiser(plain_unet(), noise(), 3),
    "latent": lambda _: FrozenDenoiser(
        plain_unet(sample_size=4, in_channels=4, out_channels=4), noise(), 3, tiny_vae()
    ),
    "classes": lambda _: FrozenDenoiser(plain_unet(num_class_embeds=3), noise(), 3),
    "text": text_denoiser,
    "semi-parametric": lambda _: spm_denoiser(),
    "semi-parametric with pixels": lambda _: spm_denoiser(pixel_fusion_width=0.3, num_label_slots=3),
}


@pytest.fixture(params=KINDS)
def denoiser(request: pytest.FixtureRequest, tmp_path: Path) -> FrozenDenoiser:
    return KINDS[request.param](tmp_path / "words")


def family_of(denoiser: FrozenDenoiser, **settings: object) -> LoraAdapters:
    plain = {"rank": 2, "targets": TARGETS, "epochs": 2, "batch_size": 4, "label_dropout": 0.25}
    plain["stack"] = 1 if denoiser.exemplars_per_image else 2
    config = LoraConfig(**(plain | settings))  # type: ignore[arg-type]
    return LoraAdapters(config, denoiser.digest, denoiser.image_shape, lambda: denoiser)


def fitted(family: LoraAdapters, jobs: list[FitJob]) -> list[str]:
    return [digest_adapter(state) for state in family.fit(jobs, SHAPE, 5)]


def factors_of(state: AdapterState) -> dict[str, Factors]:
    names = [name.removesuffix(DOWN) for name in state if name.endswith(DOWN)]
    return {
        name: Factors(torch.from_numpy(state[name + DOWN])[None], torch.from_numpy(state[name + UP])[None])
        for name in names
    }


def test_an_adapter_is_a_function_of_its_members(denoiser: FrozenDenoiser) -> None:
    family, jobs = family_of(denoiser, horizontal_flip=True, epochs=1), pixel_jobs(3, 1, 5)
    before = denoiser.digest
    alone = [fitted(family, [job])[0] for job in jobs]
    torch.manual_seed(99)
    assert fitted(family, jobs) == alone
    assert fitted(family, jobs[::-1]) == alone[::-1]
    assert len(set(alone)) == 3
    assert denoiser.digest == before
    fewer = FitJob(jobs[0].adapter, jobs[0].members.select(slice(1, None)))
    assert fitted(family, [fewer]) != alone[:1]


def error_on(denoiser: FrozenDenoiser, members: Records, state: AdapterState | None) -> float:
    """Return the mean squared error on members, under draws that training did not have, beside the others."""
    assert members.pixels is not None
    clean, generator = denoiser.encode(members.pixels).repeat(8, 1, 1, 1), torch_generator(77)
    labels = np.tile(members.labels, 8)
    drawn = torch.randn(clean.shape, generator=generator)
    times = torch.randint(0, 100, (len(clean),), generator=generator)
    chosen = [companions(members, row, 32, 3) for row in range(len(members))] * 8
    context = denoiser.beside(denoiser.tokens(members.pixels), chosen)
    layers = lora_layers(denoiser.network, TARGETS, denoiser.adaptable)
    noisy = denoiser.noise.add_noise(clean, drawn, times)
    with torch.no_grad():
        if state is None:
            predicted = denoiser.predict(noisy, times, labels, context)
        else:
            with adapted(layers, factors_of(state), 4.0 / 2):
                predicted = denoiser.predict(noisy, times, labels, context)
    return (predicted - drawn).square().mean().item()


def test_training_lowers_the_error_on_members(denoiser: FrozenDenoiser) -> None:
    settings = {"epochs": 12, "learning_rate": 2e-2, "batch_size": 8, "alpha": 4.0, "stack": 1}
    (job,) = pixel_jobs(16)
    (state,) = family_of(denoiser, **settings).fit([job], SHAPE, 0)
    before, after = (error_on(denoiser, job.members, tried) for tried in (None, state))
    assert after < 0.93 * before, (before, after)


def test_labels_matter_where_the_denoiser_hears_them(denoiser: FrozenDenoiser) -> None:
    (job,) = pixel_jobs(8)
    renamed = Records(job.members.codes, (job.members.labels + 1) % 3, job.members.ids, job.members.pixels)
    same = job._replace(members=renamed)
    family = family_of(denoiser)
    hears = denoiser.prompts is not None or denoiser.network.config.get("num_class_embeds") is not None
    hears = hears or denoiser.network.config.get("num_label_slots") is not None
    assert (fitted(family, [job]) != fitted(family, [same])) == hears


def test_adapters_of_a_text_to_image_network_are_loaded_by_diffusers(tmp_path: Path) -> None:
    denoiser = text_denoiser(tmp_path / "words")
    (state,) = family_of(denoiser, learning_rate=1e-2, alpha=3.0).fit(pixel_jobs(6), SHAPE, 0)
    noisy, labels, time = torch.randn(3, 4, 4, 4), np.array([0, 1, NULL_CLASS]), torch.tensor(30)
    layers = lora_layers(denoiser.network, TARGETS)
    with torch.no_grad():
        plain = denoiser.predict(noisy, time, labels)
        with adapted(layers, factors_of(state), 3.0 / 2):
            expected = denoiser.predict(noisy, time, labels)
        other = conditional_unet()
        other.load_lora_adapter(
            {name: torch.from_numpy(part) for name, part in state.items()},
            prefix=None,
            adapter_name="seven",
            metadata={"r": 2, "lora_alpha": 3.0, "target_modules": list(layers)},
        )
        prompts = tiny_prompts(tmp_path / "words")
        loaded = FrozenDenoiser(other.eval(), noise(), len(NAMES), tiny_vae(), prompts)
        got = loaded.predict(noisy, time, labels)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-3


def test_semi_parametric_networks_take_no_stack() -> None:
    family = family_of(spm_denoiser(), stack=2)
    with pytest.raises(ValueError, match=r"trained one by one, got a stack of 2.*set stack to 1"):
        family.fit(pixel_jobs(3), SHAPE, 0)


def test_images_learn_beside_their_class() -> None:
    (job,) = pixel_jobs(8)
    merged = Records(job.members.codes, job.members.labels * 0, job.members.ids, job.members.pixels)
    family = family_of(spm_denoiser())
    assert fitted(family, [job]) != fitted(family, [job._replace(members=merged)])


def test_no_image_is_its_own_companion() -> None:
    members = pixel_records(30, twice=6)
    for row in range(len(members)):
        chosen = companions(members, row, 32, 0, "beside", 7, 3)
        assert (members.labels[chosen] == members.labels[row]).all()
        assert not (members.ids[chosen] == members.ids[row]).all(axis=1).any()
        others = (members.labels == members.labels[row]).sum() - 1
        assert others - 1 <= len(chosen) <= others


def test_companions_depend_on_nothing_but_key_and_ids() -> None:
    members = pixel_records(40)
    row, key = 11, (0, "beside", 7, 3)
    chosen = companions(members, row, 4, *key)
    assert len(chosen) == 4
    without = np.delete(np.arange(40), [chosen[1]])
    rest = members.select(without)
    fewer = companions(rest, int(np.flatnonzero(without == row)[0]), 4, *key)
    assert members.ids[np.delete(chosen, 1)].tolist() == rest.ids[fewer[:3]].tolist()
    draws = {tuple(companions(members, row, 4, 0, "beside", 7, epoch)) for epoch in range(6)}
    assert len(draws) > 1
    stranger = Records(members.codes[:1], members.labels[:1], members.ids[:1], None)
    assert len(companions(stranger, 0, 4, *key)) == 0
