"""What exemplars cost a generator: in sampling and in training beside the plain network, and in memory."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from evaluation.timing import Row, in_turns, seconds_of
from gen_unlearn.bank import ExemplarBank, weights_fingerprint
from gen_unlearn.commands.fit_generator import GeneratorTraining
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages, load_split
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.additive_attention import additive_attention
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.fusion import AdditiveFusionBlock, FusionBlock, plan_fusion
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input
from gen_unlearn.processes import process_state
from gen_unlearn.repro import image_ids, numpy_generator

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSES, LARGEST = 10, 1024
TARGETS = {10: 1.05, 100: 1.10, LARGEST: 1.15}
PLAIN = "plain UNet of the same size"
COMPOSED = f"{PLAIN}; both a preparation and so many times a measured step"
TRAINING_STEPS, REFRESH_STEPS = 12, 4
HEADS = 4
"""Heads that a dot-product fusion has if a recipe names none."""


def generator_rows(repeats: int) -> list[Row]:
    """Time the sampling and the training of semi-parametric generators, and weigh their fusion."""
    digits = load_config(CONFIGS / "digits_spm.yaml")
    data = load_split(digits.data).train
    return [
        *_step_rows(load_config(CONFIGS / "cifar10_spm.yaml"), min(repeats, 7)),
        *_sampling_rows(digits, data, min(repeats, 5)),
        *_training_rows(digits, data, min(repeats, 7)),
        *_memory_rows(),
        _streaming_row(),
    ]


def _step_rows(config: RunConfig, repeats: int) -> list[Row]:
    """Time a batch of 20 images among 10,240 exemplars: what precedes denoising, and one step of it.

    The time of sampling is the first, and as many times the second as the recipe has steps. The exemplars are
    noise; of their bank 256 are encoded, and repeated for all others.
    """
    steps, labels = config.sampling.num_inference_steps, [index % CLASSES for index in range(20)]
    spm, plain = _pipelines(config, _noise(CLASSES * LARGEST))
    _fill_bank(spm, 8)
    encoding = seconds_of(lambda: _fill_bank(spm, 256)) / 256
    noise = torch.randn(len(labels), 3, 32, 32, device=spm.device)
    timestep = torch.tensor(500, device=spm.device)
    rows = []
    for guidance, note in ((1.0, "no guidance"), (config.sampling.guidance_scale, "guided")):
        reference = plain.noise_predictor(labels, guidance)
        works: dict[str, Callable[[], object]] = {}
        for count in TARGETS:
            prepare = _preparation(spm, labels, count, guidance)
            predict = prepare()
            works[f"prepare {count}"] = prepare
            works[f"attention {count}"] = _attention(spm, count, len(labels))
            works[f"plain {count}"] = lambda made=reference: made(noise, timestep)
            works[f"step {count}"] = lambda made=predict: made(noise, timestep)
        found = _by_turns(works, repeats)
        for count, target in TARGETS.items():
            whole = np.array(found[f"prepare {count}"]) + steps * np.array(found[f"step {count}"])
            plain_step = np.array(found[f"plain {count}"])
            pairs = list(zip(whole, steps * plain_step, strict=True))
            work = f"SPM sampling, {CLASSES} x {count:,} exemplars, {note}, 32 x 32, {steps} steps"
            alone = np.median(found[f"attention {count}"] / plain_step)
            reason = f"the attention alone takes {alone:.1%} of a plain step"
            rows.append(Row.of_ratio(work, COMPOSED, pairs, target, reason=reason))
        if guidance == 1:
            one_image = steps * plain_step / len(labels)
            pairs = [(CLASSES * LARGEST * encoding, seconds) for seconds in one_image]
            work = f"encoding {CLASSES * LARGEST:,} exemplars of 32 x 32, once, scaled from 256"
            rows.append(Row.of_ratio(work, "sampling of one image, no guidance", pairs))
    return rows


def _preparation(
    spm: SemiParametricDDPMPipeline, labels: list[int], count: int, guidance: float
) -> Callable[[], Callable[[Tensor, Tensor], Tensor]]:
    return lambda: spm.noise_predictor(labels, exemplars_per_class=count, guidance_scale=guidance)


def _attention(spm: SemiParametricDDPMPipeline, count: int, images: int) -> Callable[[], object]:
    """Return torch's attention, and nothing else, of as many images to so many exemplars of their classes."""
    assert spm._bank is not None
    _, heads, tokens, width = spm._bank.tokens.keys.shape
    lengths = (images // CLASSES * tokens, 1 + count * tokens, 1 + count * tokens)
    parts = [torch.randn(CLASSES, heads, length, width, device=spm.device) for length in lengths]
    bias = torch.zeros(CLASSES, 1, 1, lengths[1], device=spm.device)
    return lambda: F.scaled_dot_product_attention(*parts, attn_mask=bias)


def _sampling_rows(config: RunConfig, data: IndexedImages, repeats: int) -> list[Row]:
    """Time the sampling of 100 digits from beginning to end, ten of each class."""
    spm, plain = _pipelines(config, data)
    numbers = list(range(100))
    labels, indices = [n % CLASSES for n in numbers], [n // CLASSES for n in numbers]
    rows = []
    for guidance, note in ((1.0, "no guidance"), (config.sampling.guidance_scale, "guided")):
        sampling = replace(config.sampling, guidance_scale=guidance)

        def work(pipeline: GeneratorPipeline, timed: SamplingConfig = sampling) -> object:
            return sample_images(pipeline, labels, indices, timed, description="timing")

        pairs = in_turns(lambda work=work: work(spm), lambda work=work: work(plain), repeats)
        what = f"SPM sampling, {CLASSES} x {sampling.exemplars_per_class} exemplars, {note}, 8 x 8"
        rows.append(Row.of_ratio(what, PLAIN, pairs))
    return rows


def _training_rows(config: RunConfig, data: IndexedImages, repeats: int) -> list[Row]:
    """Time some training steps: exemplars encoded in each, encoded in every fourth, and none."""
    training = replace(config.training, images=TRAINING_STEPS * config.training.batch_size)
    staying = replace(training, exemplar_refresh_steps=REFRESH_STEPS)
    plain = replace(config, model=replace(config.model, kind="class-conditional"), training=training)
    recipes = {
        "plain": plain,
        "each": replace(config, training=training),
        "staying": replace(config, training=staying),
    }
    found: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(repeats + 1):
        for name, recipe in recipes.items():
            _, progress = GeneratorTraining.of(recipe, CoreSplit(data, data), Accelerator()).fit(None, name)
            found[name].append(progress.seconds)
    smallest, largest = training.exemplars_per_class
    rows = []
    for name, note, target in (
        ("each", "no gradient for exemplars", 1.5),
        ("staying", f"exemplars encoded every {REFRESH_STEPS} steps", 1.25),
    ):
        pairs = list(zip(found[name], found["plain"], strict=True))[1:]
        work = f"SPM training step, {CLASSES} x {smallest} to {largest} exemplars, {note}, 8 x 8"
        rows.append(Row.of_ratio(work, "plain step on the same images", pairs, target))
    return rows


def _memory_rows() -> list[Row]:
    """Weigh the fusion of 128 queries with 1,024 exemplars, each of them 16 tokens, in fresh processes."""
    rows = []
    for name, kind, channels in (
        ("dot-product", FusionBlock, 128),
        ("dot-product", FusionBlock, 256),
        ("additive", AdditiveFusionBlock, 256),
    ):
        pairs = 128 * 16 * LARGEST * 16 * 4 / 1e9
        dense = f"scores of all pairs in {HEADS} heads: {HEADS * pairs:.2g} GB"
        if kind is AdditiveFusionBlock:
            dense = f"dense pairs: {pairs * channels:.0f} GB a tensor, {4 * pairs * channels:.0f} GB for four"
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            gigabytes = fresh.submit(fusion_gigabytes, kind, channels).result()
        work = f"{name} fusion, 128 queries, {LARGEST:,} exemplars, 16 x {channels}: peak memory"
        rows.append(Row.of(work, dense, [gigabytes], " GB", 0.5))
    return rows


def fusion_gigabytes(kind: type[FusionBlock], channels: int) -> float:
    """Return how much more memory a fusion takes at most than its queries and encoded exemplars do.

    Args:
        kind: which fusion.
        channels: length of a token.
    """
    torch.manual_seed(0)
    device = process_state().device
    block = kind(channels).to(device)
    queries = torch.randn(128, channels, 4, 4, device=device)
    plan = plan_fusion([0] * len(queries), [np.arange(LARGEST)]).to(device)
    with torch.no_grad():
        few = block.encode(torch.randn(8, channels, 4, 4, device=device))
        tokens = few.map(lambda part: part.repeat(LARGEST // 8, 1, 1, 1))
        block(queries[:1], None)
        before = _memory(device, forget_peak=True)[0]
        block(queries, block.context(tokens, plan))
        return (_memory(device)[1] - before) / 1e9


def _memory(device: torch.device, forget_peak: bool = False) -> tuple[int, int]:
    """Return the bytes in use and the most that were, of a GPU or of this process."""
    if device.type == "cuda":
        if forget_peak:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now, most = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) for name in ("VmRSS", "VmHWM"))
    return 1024 * now, 1024 * most


def _streaming_row() -> Row:
    """Compare additive attention in chunks of 128 keys with the formula over all pairs at once."""
    draws = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(1, rows, 128, generator=draws) for rows in (256, 1024, 1024))
    weight = torch.randn(1, 128, generator=draws) / 128**0.5
    bias = torch.full((1, 1, 1024), -np.log(1024), dtype=torch.float32)
    with torch.no_grad():
        streamed = additive_attention(queries, keys, values, bias, weight, chunk=128)
        scores = F.linear(F.relu(queries[:, :, None] + keys[:, None]), weight).squeeze(-1) + bias
        difference = float((streamed - scores.softmax(dim=-1) @ values).abs().max())
    work = "additive fusion in chunks, 256 query and 1,024 exemplar tokens: largest difference"
    return Row.of(work, "dense formula", [difference], "", 1e-6)


def _by_turns(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each work, which all take turns; each is done once before anything is timed."""
    for work in works.values():
        work()
    rounds = [{name: seconds_of(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: [seconds[name] for seconds in rounds] for name in works}


def _pipelines(
    config: RunConfig, data: IndexedImages
) -> tuple[SemiParametricDDPMPipeline, ClassConditionalDDPMPipeline]:
    """Build both pipelines of one size with fresh weights: speed does not depend on training."""
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    plain_model = replace(config.model, kind="class-conditional")
    spm, plain = (
        build_denoiser(model, data.image_shape, CLASSES, config.noise).eval().to(process_state().device)
        for model in (config.model, plain_model)
    )
    assert isinstance(spm, SemiParametricUNet2DModel)
    store = ExemplarStore.from_images(data)
    return SemiParametricDDPMPipeline(spm, sampler, store), ClassConditionalDDPMPipeline(plain, sampler)


def _fill_bank(spm: SemiParametricDDPMPipeline, encoded: int) -> None:
    """Encode some exemplars, and let their tokens stand for those of all others."""
    assert spm.exemplars is not None
    images = to_model_input(spm.exemplars.images[:encoded]).to(spm.device)
    with torch.no_grad():
        few = spm.unet.encode_exemplars(images)
    rows = torch.arange(len(spm.exemplars), device=spm.device) % encoded
    tokens = few.map(lambda part: part.index_select(0, rows))
    spm._bank = ExemplarBank(tokens, spm.exemplars.ids.copy(), weights_fingerprint(spm.unet))


def _noise(count: int) -> IndexedImages:
    """Return images of noise, as large as CIFAR's, as many of each class."""
    images = numpy_generator(0, "noise", count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    names = tuple(map(str, range(CLASSES)))
    labels = np.arange(count) % CLASSES
    return IndexedImages(images, labels, image_ids(images), names, tuple(map(str, range(count))))
