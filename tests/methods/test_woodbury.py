"""The inverse by Woodbury's identity against the dense inverse, and products with the Gauss-Newton matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.curvature import conjugate_gradients, flatten, ggn_product, unflatten
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.per_sample import chosen_weights
from gen_unlearn.methods.woodbury import woodbury_ihvp
from gen_unlearn.repro import image_ids


def gradients(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    matrix = torch.randn(rows, columns, generator=draws) * torch.logspace(-2, 1, columns)
    return matrix, torch.randn(columns, generator=draws)


def dense(matrix: torch.Tensor, vector: torch.Tensor, damping: float) -> torch.Tensor:
    fisher = matrix.double().T @ matrix.double() / len(matrix)
    return torch.linalg.solve(fisher + damping * torch.eye(matrix.shape[1]).double(), vector.double())


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (30, 12), (12, 30), (20, 20)])
@pytest.mark.parametrize("damping", [1e-4, 1.0, 100.0])
def test_is_the_dense_inverse(rows: int, columns: int, damping: float) -> None:
    matrix, vector = gradients(rows, columns)
    found = woodbury_ihvp(matrix, vector, damping)
    expected = dense(matrix, vector, damping)
    assert (found - expected).norm() < 1e-8 * expected.norm()


@pytest.mark.parametrize("held", [1, 5, 7, 23, 24])
def test_blocks_change_nothing_and_read_as_much_as_promised(held: int) -> None:
    matrix, vector = gradients(23, 40)
    read = []

    def rows(start: int, stop: int) -> torch.Tensor:
        read.append(stop - start)
        return matrix[start:stop]

    found = woodbury_ihvp(rows, vector, 0.1, count=23, held=held)
    assert (found - dense(matrix, vector, 0.1)).norm() < 1e-9 * found.norm()
    assert max(read) <= held
    blocks = -(-23 // held)
    assert sum(read) == 23 if blocks == 1 else sum(read) <= held * blocks * (blocks + 1) / 2 + 23


def test_correction_leaves_the_line_of_the_first_gradient() -> None:
    matrix, vector = gradients(10, 30)
    correction = vector.double() / 0.1 - woodbury_ihvp(matrix, vector, 0.1)
    assert F.cosine_similarity(correction, matrix[0].double(), dim=0).abs() < 0.9
    coefficients = torch.linalg.lstsq(matrix.double().T, correction[:, None]).solution
    assert (matrix.double().T @ coefficients - correction[:, None]).norm() < 1e-8
    assert (coefficients.abs() > 1e-6).sum() == 10


def test_says_what_is_wrong() -> None:
    matrix, vector = gradients(4, 6)
    with pytest.raises(ValueError, match="damping above 0"):
        woodbury_ihvp(matrix, vector, 0.0)
    with pytest.raises(ValueError, match="expected count"):
        woodbury_ihvp(lambda start, stop: matrix[start:stop], vector, 1.0)
    with pytest.raises(ValueError, match="the 4 rows"):
        woodbury_ihvp(matrix, vector, 1.0, count=5)
    with pytest.raises(ValueError, match="vector of shape"):
        woodbury_ihvp(matrix, vector[:5], 1.0)
    with pytest.raises(ValueError, match="held"):
        woodbury_ihvp(matrix, vector, 1.0, held=0)


def test_gauss_newton_product_is_that_of_the_dense_matrix() -> None:
    torch.manual_seed(0)
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (7, 4, 4, 1)).astype(np.uint8)
    names = tuple(str(row) for row in range(7))
    data = IndexedImages(pixels, draws.integers(0, 3, 7), image_ids(pixels), ("a", "b", "c"), names)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model.double()
    weights = chosen_weights(model)
    size = sum(weight.numel() for weight in weights.values())
    vector = torch.randn(size, dtype=torch.float64)
    expected = torch.zeros(size, dtype=torch.float64)
    for batch in batches_of(data, 1):
        inputs = batch.inputs.double()
        jacobian = torch.stack(
            [
                flatten(dict(enumerate(torch.autograd.grad(model(inputs)[0, label], [*model.parameters()]))))
                for label in range(3)
            ]
        )
        p = model(inputs)[0].softmax(0).detach()
        expected += jacobian.T @ ((p.diag() - p[:, None] * p) @ (jacobian @ vector)) / 7
    for batch_size in (7, 3):
        found = ggn_product(model, list(batches_of(data, batch_size)), weights, vector, F.cross_entropy)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_conjugate_gradients_solve_and_refuse() -> None:
    matrix, vector = gradients(40, 12)
    fisher = matrix.double().T @ matrix.double() / 40 + 0.1 * torch.eye(12).double()
    found = conjugate_gradients(lambda x: fisher @ x, vector.double(), iterations=200, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(fisher, vector.double()))
    with pytest.raises(ValueError, match="positive definite"):
        conjugate_gradients(lambda x: -x, vector.double())
    assert conjugate_gradients(lambda x: x, torch.zeros(3).double()).tolist() == [0, 0, 0]


def test_flattening_is_undone() -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).double()}
    back = unflatten(flatten(tensors), tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert back["a"].dtype == torch.float32
