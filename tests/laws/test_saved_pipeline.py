"""What a saved pipeline holds: the same images in a new process, and no deleted pixel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import ids_to_hex

SAMPLE_IN_A_NEW_PROCESS = """
import sys
import numpy as np
import torch
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline

torch.set_num_threads(1)
pipeline = SemiParametricDDPMPipeline.from_pretrained(sys.argv[1], local_files_only=True)
generators = [torch.Generator().manual_seed(number) for number in range(3)]
output = pipeline([0, 2, None], generator=generators, num_inference_steps=3, output_type="latent")
np.save(sys.argv[2], output.images.numpy())
"""


def everything_below(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def traces(data: IndexedImages, saved: bytes) -> list[int]:
    """Rows of `data` whose pixels or id, binary or in hexadecimal, occur in `saved`."""
    marks = zip(data.images, data.ids, ids_to_hex(data.ids), strict=True)
    return [
        row
        for row, (image, id_, text) in enumerate(marks)
        if image.tobytes() in saved or id_.tobytes() in saved or text.encode() in saved
    ]


def test_a_new_process_draws_the_same_images(
    tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path
) -> None:
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    here = tiny_pipeline(
        [0, 2, None], generator=generators, num_inference_steps=3, output_type="latent"
    ).images
    tiny_pipeline.save_pretrained(tmp_path / "model", include_exemplars=True)
    command = [
        sys.executable,
        "-c",
        SAMPLE_IN_A_NEW_PROCESS,
        str(tmp_path / "model"),
        str(tmp_path / "there.npy"),
    ]
    subprocess.run(
        command,
        check=True,
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    there = torch.from_numpy(np.load(tmp_path / "there.npy"))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)


def test_exemplars_travel_only_when_asked(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path
) -> None:
    tiny_pipeline([0], num_inference_steps=2)
    tiny_pipeline.save_pretrained(tmp_path / "bare")
    tiny_pipeline.save_pretrained(tmp_path / "full", include_exemplars=True)
    assert traces(few_images, everything_below(tmp_path / "bare")) == []
    assert traces(few_images, everything_below(tmp_path / "full")) == list(range(30))
    bare = SemiParametricDDPMPipeline.from_pretrained(tmp_path / "bare", local_files_only=True)
    full = SemiParametricDDPMPipeline.from_pretrained(tmp_path / "full", local_files_only=True)
    assert bare.exemplars is None
    assert full.exemplars.digest == tiny_pipeline.exemplars.digest
    assert tiny_pipeline.exemplars is not None


@pytest.mark.parametrize("reloaded", [False, True], ids=["in memory", "loaded"])
def test_deleted_images_are_in_no_saved_file(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path, reloaded: bool
) -> None:
    gone = [0, 3, 17]
    pipeline = tiny_pipeline
    if reloaded:
        tiny_pipeline.save_pretrained(tmp_path / "before", include_exemplars=True)
        pipeline = SemiParametricDDPMPipeline.from_pretrained(tmp_path / "before", local_files_only=True)
    pipeline([0], num_inference_steps=2)
    pipeline.delete(ForgetSet.from_ids(few_images, few_images.ids[gone], "test"))
    pipeline.save_pretrained(tmp_path / "after", include_exemplars=True)
    kept = [row for row in range(30) if row not in gone]
    assert traces(few_images, everything_below(tmp_path / "after")) == kept


def test_saving_over_an_older_save_leaves_no_deleted_image(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path
) -> None:
    tiny_pipeline.save_pretrained(tmp_path, include_exemplars=True)
    tiny_pipeline.delete(ForgetSet.from_ids(few_images, few_images.ids[[5]], "test"))
    with pytest.raises(ValueError, match="holds exemplars of an earlier save"):
        tiny_pipeline.save_pretrained(tmp_path)
    tiny_pipeline.save_pretrained(tmp_path, include_exemplars=True)
    kept = [row for row in range(30) if row != 5]
    assert traces(few_images, everything_below(tmp_path)) == kept


def test_saved_files_are_json_and_safetensors_only(
    tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path
) -> None:
    tiny_pipeline.save_pretrained(tmp_path, include_exemplars=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.name != "SHA256SUMS"} == {".json", ".safetensors"}
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["exemplars"] == ["gen_unlearn.exemplars", "ExemplarStore"]
    assert index["unet"] == ["gen_unlearn.models.unet", "SemiParametricUNet2DModel"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loading_in_half_precision_keeps_the_exemplars(
    tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_pipeline.save_pretrained(tmp_path, include_exemplars=True)
    loaded = SemiParametricDDPMPipeline.from_pretrained(tmp_path, dtype=dtype, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.exemplars.digest == tiny_pipeline.exemplars.digest
    assert np.array_equal(loaded.exemplars.images, tiny_pipeline.exemplars.images)
    assert loaded.unet.dtype == dtype
    assert loaded([0, 1, None], num_inference_steps=2, output_type="latent").images.isfinite().all()
