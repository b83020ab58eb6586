import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from run_factory import ended, fork

from gen_unlearn.metrics.accumulate import FrechetDistanceMetric, KernelDistanceMetric
from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol
from gen_unlearn.metrics.frechet import frechet_distance
from gen_unlearn.metrics.kernel import kernel_distance

PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))
DIM = 6
SHARES = {"ragged": ([5, 1, 8], [3]), "first has none": ([], [4, 9]), "second has none": ([6, 2, 7], [])}
"""Sizes of the batches of each of two processes."""
LATER = 5
"""Images that the first process adds after all have computed once."""


def features(count: int, seed: int = 1) -> torch.Tensor:
    """Draw features far from 0, as those behind a rectifier are."""
    rows = np.random.default_rng(seed).normal(size=(count, DIM)) * np.linspace(0.5, 2, DIM) + 20
    return torch.from_numpy(rows)


def stats(rows: torch.Tensor) -> FeatureStats:
    return FeatureStats.from_features(rows.numpy(), PROTOCOL)


def metrics() -> tuple[FrechetDistanceMetric, KernelDistanceMetric]:
    reference = features(50, seed=0)
    return FrechetDistanceMetric(stats(reference)), KernelDistanceMetric(reference)


def expected(rows: torch.Tensor) -> tuple[float, float]:
    reference = features(50, seed=0)
    return frechet_distance(stats(rows), stats(reference)), kernel_distance(rows.numpy(), reference.numpy())


def accumulate(rank: int) -> dict[str, list[float]]:
    """Add one process's share of some features to both metrics, and return what they compute."""
    found = {}
    for name, shares in SHARES.items():
        both = metrics()
        rows = features(sum(map(sum, shares))).split([*shares[0], *shares[1]])
        own = rows[: len(shares[0])] if rank == 0 else rows[len(shares[0]) :]
        for metric in both:
            for batch in own:
                metric.update(batch)
        found[name] = [float(metric.compute()) for metric in both]
        for metric in both:
            if rank == 0:
                metric.update(features(LATER, seed=2))
        found[f"{name}, later"] = [float(metric.compute()) for metric in both]
    return found


def take_part(rank: int, folder: Path) -> dict[str, list[float]]:
    """Accumulate as one of two processes that meet in a folder."""
    meeting, patience = f"file://{folder}/rendezvous", timedelta(seconds=90)
    torch.distributed.init_process_group("gloo", meeting, patience, world_size=2, rank=rank)
    try:
        return accumulate(rank)
    finally:
        torch.distributed.destroy_process_group()


def second_process(folder: Path) -> None:
    (folder / "second.json").write_text(json.dumps(take_part(1, folder)))


@pytest.mark.filterwarnings("ignore:The ``compute`` method.* was called before:UserWarning")
def test_processes_compute_what_one_process_does(tmp_path: Path) -> None:
    other = fork(lambda: second_process(tmp_path))
    first = take_part(0, tmp_path)
    assert ended(other) == 0
    assert first == json.loads((tmp_path / "second.json").read_text())
    for name, shares in SHARES.items():
        rows = features(sum(map(sum, shares)))
        assert first[name] == pytest.approx(expected(rows), rel=1e-10)
        rows = torch.cat([rows, features(LATER, seed=2)])
        assert first[f"{name}, later"] == pytest.approx(expected(rows), rel=1e-10)


def test_batches_do_not_matter() -> None:
    rows = features(40)
    for metric, value in zip(metrics(), expected(rows), strict=True):
        for size in (rows.split(7), rows.split(40), [rows[:0], rows]):
            metric.reset()
            for batch in size:
                metric.update(batch)
            result = metric.compute()
            assert result.dtype == torch.float64
            assert result.shape == ()
            assert float(result) == pytest.approx(value, rel=1e-10)


def test_survives_single_precision_features_far_from_zero() -> None:
    rows, other = (1000 + features(400, seed) for seed in (1, 0))
    metric = FrechetDistanceMetric(stats(other))
    metric.update(rows.float())
    exact = frechet_distance(stats(rows.float().double()), stats(other))
    assert float(metric.compute()) == pytest.approx(exact, rel=1e-9)


def test_takes_a_reference_that_may_not_be_written() -> None:
    reference = stats(features(50, seed=0))
    reference.mean.setflags(write=False)
    metric = FrechetDistanceMetric(reference)
    metric.update(features(40))
    assert float(metric.compute()) == pytest.approx(expected(features(40))[0], rel=1e-10)


def test_forward_gives_the_value_of_a_batch_and_accumulates() -> None:
    rows = features(40)
    for metric, batch, total in zip(metrics(), expected(rows[30:]), expected(rows), strict=True):
        metric.update(rows[:30])
        assert float(metric(rows[30:])) == pytest.approx(batch, rel=1e-10)
        assert float(metric.compute()) == pytest.approx(total, rel=1e-10)


def test_saves_neither_state_nor_reference() -> None:
    for metric in metrics():
        metric.update(features(10))
        assert not metric.state_dict()
        assert not list(metric.parameters())
        assert not list(metric.buffers())


def test_stays_in_double_precision_inside_a_network_of_half() -> None:
    network = torch.nn.Module()
    network.frechet, network.kernel = metrics()
    network.half()
    for metric, value in zip((network.frechet, network.kernel), expected(features(40)), strict=True):
        metric.update(features(40))
        assert float(metric.compute()) == pytest.approx(value, rel=1e-10)


def test_refuses_what_is_not_features() -> None:
    for metric in metrics():
        with pytest.raises(ValueError, match=r"shape \(b, 6\) as in the reference, got \(4, 5\)"):
            metric.update(torch.zeros(4, 5))
        with pytest.raises(ValueError, match="expected finite features"):
            metric.update(torch.full((4, 6), torch.nan))
        metric.reset()
        metric.update(features(1))
        with pytest.raises(ValueError, match="at least 2 images in all processes together, got 1"):
            metric.compute()
    with pytest.raises(ValueError, match="at least 2 images in all processes together, got 1"):
        KernelDistanceMetric(features(1))
    with pytest.raises(ValueError, match="expected finite features"):
        KernelDistanceMetric(torch.tensor(1.0))
