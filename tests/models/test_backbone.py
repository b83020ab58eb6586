"""The backbone of an adapter ensemble: saved to the bit, and never in training mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gen_unlearn.adapters.records import quantise
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.encoders import encoder_architecture
from gen_unlearn.repro import digest_state

EXTREMES = torch.tensor([-32767, 32767, -1, 0, 12345, -256], dtype=torch.int16)


@pytest.fixture
def backbone() -> AdapterBackbone:
    """A backbone with statistics and keys that half precision could not hold."""
    torch.manual_seed(0)
    architecture = encoder_architecture(EncoderConfig(width=8, depth=1), (1, 8, 8))
    made = AdapterBackbone(architecture, adapters=5, key_source="public-kmeans")
    made.mean.copy_(torch.linspace(-1, 1, made.encoder.out_dim) / 3)
    made.deviation.copy_(torch.linspace(0.001, 30, made.encoder.out_dim) / 7)
    made.key_codes[:, : len(EXTREMES)] = EXTREMES
    return made


def test_saves_and_loads_every_bit(backbone: AdapterBackbone, tmp_path: Path) -> None:
    backbone.save_pretrained(tmp_path)
    stored = load_file(next(tmp_path.glob("*.safetensors")))
    assert stored["key_codes"].dtype == torch.int16
    loaded = AdapterBackbone.from_pretrained(tmp_path, local_files_only=True)
    assert digest_state(loaded.state_dict()) == digest_state(backbone.state_dict()) == digest_state(stored)
    assert (loaded.mean.dtype, loaded.deviation.dtype) == (torch.float32, torch.float32)
    assert loaded.public_keys().source == "public-kmeans"
    assert loaded.public_keys().digest == backbone.public_keys().digest
    assert not loaded.training


def test_never_trains(backbone: AdapterBackbone) -> None:
    images = torch.randn(4, 1, 8, 8)
    before, first = digest_state(backbone.state_dict()), backbone(images)
    backbone.train()
    assert not any(part.training for part in backbone.modules())
    assert torch.equal(backbone(images), first)
    assert digest_state(backbone.state_dict()) == before, "no running statistic moved"
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_codes_are_standardised_features(backbone: AdapterBackbone) -> None:
    images = torch.randn(6, 1, 8, 8)
    codes, cut_off = backbone.codes(images)
    expected, _ = quantise(backbone(images), backbone.mean, backbone.deviation)
    assert codes.dtype == np.int16
    assert np.array_equal(codes, expected)
    assert cut_off == int((np.abs(codes.astype(int)) == 32767).sum()) > 0
