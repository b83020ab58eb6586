"""ReGUn: images to forget are answered as held-out ones were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.regun import Reference, ReGUn
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import image_ids


def _request(without_heldout_of: int | None = None) -> UnlearnData:
    images = np.random.default_rng(0).integers(0, 256, (36, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(36, dtype=np.int64) % 3
    data = IndexedImages(images, labels, image_ids(images), ("a", "b", "c"), tuple(map(str, range(36))))
    heldout = data.select(np.arange(24, 36))
    return UnlearnData(
        data.select(np.arange(6)),
        data.select(np.arange(6, 24)),
        heldout.select(heldout.labels != without_heldout_of),
    )


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_one_step_follows_the_formula() -> None:
    """A full-batch step on ``w_f KL(q || p) + w_r CE`` with class means, taken by hand."""
    data, network = _request(), _network()
    method = ReGUn(
        lr=0.1,
        epochs=1,
        momentum=0.0,
        batch_forget=6,
        batch_retain=18,
        forget_weight=0.3,
        retain_weight=0.6,
        reference="class_means",
    )
    done = unlearn(method, network, data, accelerator=Accelerator(cpu=True), seed=1)
    with torch.no_grad():
        heldout = network(to_model_input(data.heldout.images)).softmax(dim=1)
    means = torch.stack(
        [heldout[torch.from_numpy(data.heldout.labels == label)].mean(dim=0) for label in range(3)]
    )
    target = means[torch.from_numpy(data.forget.labels)].mean(dim=0)
    own = network(to_model_input(data.forget.images)).log_softmax(dim=1)
    divergence = (target * (target.log() - own)).sum(dim=1).mean()
    retain = F.cross_entropy(
        network(to_model_input(data.retain.images)), torch.from_numpy(data.retain.labels)
    )
    gradients = torch.autograd.grad(0.3 * divergence + 0.6 * retain, list(network.parameters()))
    for before, gradient, after in zip(network.parameters(), gradients, done.model.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient, rtol=1e-5, atol=1e-6)
    assert (done.cost.forward_samples, done.cost.backward_samples) == (12 + 24, 24)


def test_without_the_divergence_it_is_fine_tuning() -> None:
    """Only the order of the images differs, and a full batch has none."""
    data, network = _request(), _network()
    found, other = (
        unlearn(method, network, data, accelerator=Accelerator(cpu=True), seed=1).model
        for method in (
            ReGUn(lr=0.1, epochs=3, batch_retain=18, forget_weight=0.0, retain_weight=1.0),
            FineTune(lr=0.1, epochs=3, batch_retain=18),
        )
    )
    for one, two in zip(found.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_draws_have_the_classes_of_the_batch_and_the_class_means_on_average() -> None:
    """With one-hot answers the histogram of the draws is that of the batch; draws change with the step."""
    data = _request()
    one_hot = F.one_hot(torch.from_numpy(data.heldout.labels), 3).double()
    labels = torch.tensor([0, 0, 1, 0])
    batch = Batch(torch.zeros(4, 1), labels, data.forget.ids[:4])
    histogram = torch.tensor([[0.75, 0.25, 0.0]], dtype=torch.float64)
    known = Reference(one_hot, data.heldout, data.forget, 0)
    assert torch.equal(known.drawn(batch), histogram)
    assert torch.equal(known.class_means(batch), histogram)
    answers = torch.rand(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = Reference(answers, data.heldout, data.forget, 0)
    draws = torch.cat([reference.drawn(batch._replace(step=step)) for step in range(400)])
    assert len(draws.unique(dim=0)) > 20
    torch.testing.assert_close(
        draws.mean(dim=0, keepdim=True), reference.class_means(batch), atol=0.05, rtol=0
    )


def test_a_class_without_held_out_images_is_refused() -> None:
    """Nothing says how an unseen image of it is answered."""
    with pytest.raises(ValueError, match="held-out images of every class"):
        unlearn(ReGUn(), _network(), _request(1), accelerator=Accelerator(cpu=True), seed=1)
