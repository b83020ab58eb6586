"""Deterministic arithmetic on a graphics processor: what is set, and that it is put back."""

from __future__ import annotations

import pytest
import torch
from small_denoisers import pixel_jobs, tiny_denoiser

from gen_unlearn.adapters.family import HeadShape, digest_adapter
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.strict import strict_arithmetic
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser

CUDA = torch.device("cuda")


def flags() -> tuple[object, ...]:
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return (
        torch.get_deterministic_debug_mode(),
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        cuda.matmul.allow_tf32,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


STRICT = (2, False, True, False, False, False, False, True, False)


@pytest.mark.parametrize("mode", [0, 1])
def test_settings_hold_inside_and_are_put_back(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.set_deterministic_debug_mode(mode)
    try:
        before = flags()
        with strict_arithmetic(CUDA):
            assert flags() == STRICT
            with strict_arithmetic(CUDA):
                assert flags() == STRICT
            assert flags() == STRICT
        assert flags() == before != STRICT
        with pytest.raises(KeyError), strict_arithmetic(CUDA):
            raise KeyError
        assert flags() == before
    finally:
        torch.set_deterministic_debug_mode(0)


def test_on_the_cpu_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    with strict_arithmetic(torch.device("cpu")):
        assert flags() == before


@pytest.mark.parametrize("said", [None, ":16:8"])
def test_an_environment_that_leaves_bits_open_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if said is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", said)
    before = flags()
    with (
        pytest.raises(ValueError, match="expected CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"),
        strict_arithmetic(CUDA),
    ):
        pass
    assert flags() == before


@pytest.mark.gpu
def test_adapters_have_equal_bits_on_a_graphics_processor() -> None:
    """Start pytest with CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment."""
    denoiser = tiny_denoiser()
    denoiser.network.to(CUDA)

    def give() -> FrozenDenoiser:
        return denoiser

    config = LoraConfig(rank=2, targets=("to_q", "to_v", "conv1"), epochs=3, batch_size=4, stack=2)
    family, shape = LoraAdapters(config, "digest", (8, 8, 1), give), HeadShape(1, 3)
    jobs = pixel_jobs(5, 3, 9)
    alone = [digest_adapter(family.fit([job], shape, 0)[0]) for job in jobs]
    assert [digest_adapter(state) for state in family.fit(jobs, shape, 0)] == alone
    assert [digest_adapter(state) for state in family.fit(jobs[::-1], shape, 0)] == alone[::-1]
