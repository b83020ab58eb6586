"""Membership scores: how much a denoiser favours particular images.

Every score is of one image on its own and higher for one that is more likely to have been trained on. They
are compared between images of one class, and with those of a model that never saw the images; see
`gen_unlearn.metrics.likelihood_ratio` and `gen_unlearn.metrics.membership`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.metrics.attack_config import AttackConfig
from gen_unlearn.pipelines.denoising import NoisePredictor
from gen_unlearn.repro import torch_generator
from gen_unlearn.shared_rows import shared_rows

AttackName = Literal["loss", "secmi", "pia", "pian", "clid"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)

ImageKey = int | str | bytes
"""What the noise of an image is derived from, such as the bytes of its sample id."""


class Denoiser(Protocol):
    """Predict the noise in images that are all at one timestep, each image on its own and without chance."""

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Map float32 images ``(n, c, h, w)`` and an int64 timestep ``()`` to the noise ``(n, c, h, w)``."""
        ...


USUAL_ATTACKS = AttackConfig()


def epsilon_denoiser(
    predict: NoisePredictor, alphas_cumprod: Tensor, prediction_type: Literal["epsilon", "v_prediction"]
) -> Denoiser:
    """Turn a pipeline's `noise_predictor` into a denoiser.

    A prediction of ``v = sqrt(a) e - sqrt(1 - a) x0`` (Salimans & Ho 2022) becomes the noise
    ``e = sqrt(a) v + sqrt(1 - a) x_t``, with ``a`` the entry of `alphas_cumprod`, ``(T,)``.

    Raises:
        ValueError: if the prediction type is neither ``"epsilon"`` nor ``"v_prediction"``.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"expected the prediction type 'epsilon' or 'v_prediction', got {prediction_type!r}; "
            "convert the prediction to noise"
        )

    def predict_epsilon(noisy: Tensor, timestep: Tensor) -> Tensor:
        prediction = predict(noisy, timestep)
        if prediction_type == "epsilon":
            return prediction
        signal, scale = _scales(alphas_cumprod, int(timestep))
        return signal * prediction + scale * noisy

    return predict_epsilon


@torch.no_grad()
def loss_score(
    images: Tensor,
    keys: Sequence[ImageKey],
    denoiser: Denoiser,
    alphas_cumprod: Tensor,
    config: AttackConfig = USUAL_ATTACKS,
) -> np.ndarray:
    """Return minus the mean squared error of the predicted noise (Matsumoto et al. 2023).

    The mean is over timesteps, draws and pixels. The noise of an image follows from its key and the seed
    alone: scores of one image under several models are paired, and none depends on the images beside it.

    Args:
        images: float32 ``(n, c, h, w)`` in [-1, 1].
        keys: one for each image.
        denoiser: the model, for these images.
        alphas_cumprod: ``(T,)``, of the model's noise schedule.
        config: timesteps, draws and seed.

    Returns:
        float64 ``(n,)``.

    Raises:
        ValueError: if the images have another form or number than the keys, or a timestep is not below T.
    """
    _require_images(images, keys)
    noises = _noise_draws(images, keys, config)
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for timestep, draws in zip(config.loss_timesteps, noises, strict=True):
        signal, scale = _scales(alphas_cumprod, timestep)
        for noise in draws:
            predicted = _predict(denoiser, signal * images + scale * noise, timestep)
            total += (predicted - noise).double().square().mean(dim=(1, 2, 3))
    return -(total / (len(config.loss_timesteps) * config.loss_draws)).cpu().numpy()


@torch.no_grad()
def secmi_score(
    images: Tensor, denoiser: Denoiser, alphas_cumprod: Tensor, config: AttackConfig = USUAL_ATTACKS
) -> np.ndarray:
    """Return minus the squared drift of one step of DDIM on and back: SecMI (Duan et al. 2023).

    The image is first inverted to `secmi_timestep` by DDIM without noise. Args, result and errors are those
    of `loss_score`. The authors' code measures one stride before that timestep; this follows the paper.
    """
    _require_images(images)
    stride, target = config.secmi_stride, config.secmi_timestep

    def move(samples: Tensor, start: int, end: int) -> Tensor:
        signal, scale = _scales(alphas_cumprod, start)
        next_signal, next_scale = _scales(alphas_cumprod, end)
        noise = _predict(denoiser, samples, start)
        return next_signal * (samples - scale * noise) / signal + next_scale * noise

    state = images
    for timestep in range(0, target, stride):
        state = move(state, timestep, timestep + stride)
    returned = move(move(state, target, target + stride), target + stride, target)
    return -(returned - state).double().square().sum(dim=(1, 2, 3)).cpu().numpy()


@torch.no_grad()
def pia_score(
    images: Tensor, denoiser: Denoiser, alphas_cumprod: Tensor, config: AttackConfig = USUAL_ATTACKS
) -> np.ndarray:
    """Return ``-|e0 - e(sqrt(a) x + sqrt(1 - a) e0, t)|_4`` with ``e0 = e(x, 0)``: PIA (Kong et al. 2023).

    Args, result and errors are those of `loss_score`.
    """
    return _proximal_score(images, _initial_noise(images, denoiser), denoiser, alphas_cumprod, config)


@torch.no_grad()
def pian_score(
    images: Tensor, denoiser: Denoiser, alphas_cumprod: Tensor, config: AttackConfig = USUAL_ATTACKS
) -> np.ndarray:
    """Return the score of `pia_score` with ``e0`` rescaled to the mean magnitude of Gaussian noise: PIAN.

    The mean of ``|e0|`` over the pixels becomes ``sqrt(2 / pi)``. Args, result and errors are those of
    `loss_score`.
    """
    start = _initial_noise(images, denoiser)
    magnitude = start.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(start.dtype).tiny)
    start = start * (math.sqrt(2 / math.pi) / magnitude)
    return _proximal_score(images, start, denoiser, alphas_cumprod, config)


def attack_scores(
    images: Tensor,
    keys: Sequence[ImageKey],
    denoiser_of: Callable[[slice], Denoiser],
    alphas_cumprod: Tensor,
    config: AttackConfig = USUAL_ATTACKS,
    device: torch.device | str = "cpu",
    description: str = "attack",
    null_denoiser_of: Callable[[slice], Denoiser] | None = None,
    wanted: Collection[AttackName] = ATTACKS,
) -> dict[str, np.ndarray]:
    """Run the attacks that need one model, in batches, which several processes share: all get all scores.

    Args:
        images: float32 ``(n, c, h, w)`` in [-1, 1].
        keys: one for each image, see `loss_score`.
        denoiser_of: returns the denoiser for a slice of the images, such as one made from the pipeline's
            ``noise_predictor(labels[rows], guidance_scale=1)``.
        alphas_cumprod: ``(T,)``, of the model's noise schedule.
        config: constants of the attacks.
        device: where the denoiser computes.
        description: shown before the progress bar.
        null_denoiser_of: like `denoiser_of`, of the same model without a condition; `None` for none.
        wanted: the attacks to run; no network is asked for another.

    Returns:
        float64 ``(n,)`` scores by attack. ``"clid"``, which takes a denoiser without condition, is by how
        much the condition lowers the loss, on the same noise, ``E[l(null) - l(c)]`` (Zhai et al. 2024).

    Raises:
        ValueError: see `loss_score`.
    """
    _require_images(images, keys)
    schedule = alphas_cumprod.double().cpu()
    attacks: dict[str, Callable[[Tensor, Sequence[ImageKey], Denoiser], np.ndarray]] = {
        "loss": lambda batch, own, denoiser: loss_score(batch, own, denoiser, schedule, config),
        "secmi": lambda batch, _, denoiser: secmi_score(batch, denoiser, schedule, config),
        "pia": lambda batch, _, denoiser: pia_score(batch, denoiser, schedule, config),
        "pian": lambda batch, _, denoiser: pian_score(batch, denoiser, schedule, config),
    }
    names = [name for name in ATTACKS if name in wanted and (name != "clid" or null_denoiser_of is not None)]
    if not names:
        return {}

    def scored(rows: slice) -> np.ndarray:
        batch, denoiser = images[rows].to(device), denoiser_of(rows)
        found = {name: attacks[name](batch, keys[rows], denoiser) for name in names if name in attacks}
        if "clid" in names and null_denoiser_of is not None:
            loss = found["loss"] if "loss" in found else attacks["loss"](batch, keys[rows], denoiser)
            found["clid"] = loss - attacks["loss"](batch, keys[rows], null_denoiser_of(rows))
        return np.stack([found[name] for name in names], axis=1)

    scores = shared_rows(len(images), config.batch_size, scored, description)
    return {name: np.ascontiguousarray(scores[:, column]) for column, name in enumerate(names)}


def _initial_noise(images: Tensor, denoiser: Denoiser) -> Tensor:
    """Return the noise that the denoiser sees in clean images."""
    _require_images(images)
    return _predict(denoiser, images, 0)


def _proximal_score(
    images: Tensor, start: Tensor, denoiser: Denoiser, alphas_cumprod: Tensor, config: AttackConfig
) -> np.ndarray:
    """Return minus the 4-norm of what the denoiser makes of the noise `start` at `pia_timestep`."""
    signal, scale = _scales(alphas_cumprod, config.pia_timestep)
    again = _predict(denoiser, signal * images + scale * start, config.pia_timestep)
    return -(start - again).double().pow(4).sum(dim=(1, 2, 3)).pow(0.25).cpu().numpy()


def _predict(denoiser: Denoiser, noisy: Tensor, timestep: int) -> Tensor:
    """Return the predicted noise as float32."""
    return denoiser(noisy, torch.tensor(timestep, device=noisy.device)).float()


def _scales(alphas_cumprod: Tensor, timestep: int) -> tuple[float, float]:
    """Return the scales of image and noise at a timestep: ``sqrt(a)`` and ``sqrt(1 - a)``."""
    if not 0 <= timestep < len(alphas_cumprod):
        raise ValueError(
            f"expected timesteps from 0 to {len(alphas_cumprod) - 1}, got {timestep}; "
            "scale the timesteps of the attacks to the noise schedule"
        )
    signal = float(alphas_cumprod[timestep])
    return math.sqrt(signal), math.sqrt(1 - signal)


def _noise_draws(images: Tensor, keys: Sequence[ImageKey], config: AttackConfig) -> Tensor:
    """Draw the noise of each image, ``(timesteps, draws, n, c, h, w)``."""
    shape = (len(config.loss_timesteps), config.loss_draws, *images.shape[1:])
    drawn = [torch.randn(shape, generator=torch_generator("membership", config.seed, key)) for key in keys]
    return torch.stack(drawn, dim=2).to(images.device)


def _require_images(images: Tensor, keys: Sequence[ImageKey] | None = None) -> None:
    """Raise a ValueError unless images are float32 ``(n, c, h, w)`` with n >= 1, one for each key."""
    if images.dtype != torch.float32 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"expected at least one image as float32 of shape (n, channels, height, width), got "
            f"{images.dtype} of shape {tuple(images.shape)}; convert them with gen_unlearn.pixels first"
        )
    if keys is not None and len(keys) != len(images):
        raise ValueError(f"expected one key for each of {len(images)} images, got {len(keys)}")
