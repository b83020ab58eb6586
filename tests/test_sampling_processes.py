"""Two processes sample what one samples, and write it once."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run_command
from run_factory import make_run, random_images, snapshot
from safetensors.numpy import load_file, save_file
from two_processes import as_two

from gen_unlearn.pipelines.sampling import sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state

LABELS = (0, 1, 2, None, 0, 1, 2)
INDICES = (0, 0, 0, 0, 1, 1, 30)


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_two_processes_sample_the_images_of_one(
    tiny_pipeline: SemiParametricDDPMPipeline, tmp_path: Path, batch_size: int
) -> None:
    """The last batch is short; of a single batch the other process has none."""
    config = SamplingConfig(num_inference_steps=2, exemplars_per_class=4, batch_size=batch_size)
    expected = sample_images(tiny_pipeline, LABELS, INDICES, config)

    def sample(rank: int) -> None:
        save_file({"images": sample_images(tiny_pipeline, LABELS, INDICES, config)}, tmp_path / f"{rank}")

    as_two(sample)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}")["images"]
        assert found.dtype == expected.dtype == "uint8"
        assert found.tobytes() == expected.tobytes()


def test_a_class_that_cannot_be_sampled_is_refused_by_both(tiny_pipeline: SemiParametricDDPMPipeline) -> None:
    config = SamplingConfig(num_inference_steps=1, exemplars_per_class=1, batch_size=1)

    def sample(_: int) -> None:
        with pytest.raises(ValueError, match="7"):
            sample_images(tiny_pipeline, (0, 7), (0, 0), config)
        process_state().wait_for_everyone()

    as_two(sample)


def test_the_verb_writes_the_files_of_one_process(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", random_images(30, 0))
    few = ["--count", 3, "--set", "sampling.batch_size=4"]

    def sample(rank: int) -> None:
        found = run_command("sample", run.path, "--out", tmp_path / "two", *few)
        assert found.exit_code == 0, found.output
        assert (found.stdout != "") == (rank == 0), "one of them says so"
        assert len(list((tmp_path / "two").iterdir())) == 10, "all files are there"

    assert run_command("sample", run.path, "--out", tmp_path / "one", *few).exit_code == 0
    as_two(sample)
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
