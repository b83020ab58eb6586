import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn

from gen_unlearn.metrics.relearning import (
    LabelledInputs,
    RelearnCurve,
    Relearning,
    compare_relearning,
    relearn,
)
from gen_unlearn.repro import digest_state

FAST = Relearning(steps=30, images_per_epoch=100, batch_size=20)


@functools.cache
def sets() -> tuple[LabelledInputs, LabelledInputs]:
    """Draw three overlapping classes; the forget set is the whole of class 2."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    inputs = generator.normal(size=(3, 8))[labels] * 1.5 + generator.normal(size=(400, 8))
    x, y = torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)
    gone = y == 2
    return LabelledInputs(x[gone], y[gone]), LabelledInputs(x[~gone], y[~gone])


@functools.cache
def trained(whole: bool, seed: int = 0) -> nn.Module:
    forget, retain = sets()
    x, y = retain
    if whole:
        x, y = torch.cat([x, forget.inputs]), torch.cat([y, forget.labels])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
        )
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval()


def hidden() -> nn.Module:
    """Hide the forgotten class of the original behind a bias, as an unlearner does that forgets nothing."""
    model = copy.deepcopy(trained(True))
    with torch.no_grad():
        model.get_parameter("4.bias")[2] -= 12
    return model


def test_the_retrained_model_starts_behind_the_original() -> None:
    original, retrained = (relearn(trained(whole), *sets(), FAST) for whole in (True, False))
    assert original.accuracy[0] > 85
    assert retrained.accuracy[0] == 0
    assert retrained.loss[0] > original.loss[0] + 1
    assert retrained.accuracy[-1] > 70
    assert len(original.accuracy) == len(original.loss) == 31


def test_hidden_knowledge_comes_back_sooner() -> None:
    original = relearn(trained(True), *sets(), FAST)
    retrained = relearn(trained(False), *sets(), FAST)
    unlearned = relearn(hidden(), *sets(), FAST)
    assert unlearned.accuracy[0] < 20
    target = 5 * float(original.loss[0])
    found = compare_relearning(unlearned, retrained, target)
    assert found.steps is not None
    assert found.retrained_steps is not None
    assert found.ain is not None
    assert found.steps < found.retrained_steps
    assert found.ain == found.steps / found.retrained_steps < 0.8
    assert found.accuracy_gaps.max() > 20
    same = compare_relearning(retrained, retrained, target)
    assert same.ain == 1
    assert not same.accuracy_gaps.any()


def test_the_model_and_the_random_state_are_untouched() -> None:
    model = trained(True)
    model.train()
    model.get_parameter("0.weight").requires_grad_(False)
    before, state = digest_state(model.state_dict()), torch.random.get_rng_state()
    relearn(model, *sets(), FAST)
    assert digest_state(model.state_dict()) == before
    assert model.training
    assert not model.get_parameter("0.weight").requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    model.requires_grad_(True).eval()


def test_one_seed_is_one_curve() -> None:
    one, two = (relearn(trained(False), *sets(), FAST, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.loss, two.loss)
    assert (relearn(trained(False), *sets(), FAST, seed=2).loss != one.loss).any()


def test_one_step_is_one_of_gradient_descent() -> None:
    """With one batch that is the whole of both sets, the step is ``theta - lr grad``."""
    forget, retain = sets()
    few = (
        LabelledInputs(forget.inputs[:4], forget.labels[:4]),
        LabelledInputs(retain.inputs[:6], retain.labels[:6]),
    )
    model = nn.Linear(8, 3).double()
    x = torch.cat([few[0].inputs, few[1].inputs]).double()
    y = torch.cat([few[0].labels, few[1].labels])
    nn.functional.cross_entropy(model(x), y).backward()
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    with torch.no_grad():
        stepped = x[:4] @ (model.weight - 0.1 * model.weight.grad).T + model.bias - 0.1 * model.bias.grad
    expected = float(nn.functional.cross_entropy(stepped, y[:4]))
    double = tuple(LabelledInputs(data.inputs.double(), data.labels) for data in few)
    curve = relearn(model, double[0], double[1], Relearning(steps=1, images_per_epoch=500, batch_size=10))
    assert curve.loss[1] == pytest.approx(expected, abs=1e-6)


def test_comparison_of_curves_by_hand() -> None:
    fast = RelearnCurve(np.array([0.0, 50, 100]), np.array([2.0, 0.4, 0.1]))
    slow = RelearnCurve(np.array([0.0, 10, 90]), np.array([3.0, 1.0, 0.4]))
    found = compare_relearning(fast, slow, 0.5)
    assert (found.steps, found.retrained_steps, found.ain) == (1, 2, 0.5)
    np.testing.assert_array_equal(found.accuracy_gaps, [0, 40, 10])
    assert compare_relearning(fast, slow, 0.2).ain is None
    assert compare_relearning(slow, fast, 0.2).ain is None
    assert compare_relearning(fast, slow, 5.0).ain is None, "a retrained model that begins there has no ratio"
    with pytest.raises(ValueError, match="one length"):
        compare_relearning(fast, RelearnCurve(np.zeros(2), np.zeros(2)), 0.5)
    with pytest.raises(ValueError, match="finite loss"):
        compare_relearning(fast, slow, float("nan"))


def test_refuses_bad_settings_sets_and_diverged_models() -> None:
    forget, retain = sets()
    with pytest.raises(ValueError, match="learning rate"):
        Relearning(lr=0.0)
    with pytest.raises(ValueError, match="momentum"):
        Relearning(momentum=1.0)
    with pytest.raises(ValueError, match="step"):
        Relearning(steps=0)
    with pytest.raises(ValueError, match="forget set"):
        relearn(trained(True), LabelledInputs(forget.inputs[:0], forget.labels[:0]), retain, FAST)
    with pytest.raises(ValueError, match="retain set"):
        relearn(trained(True), forget, LabelledInputs(retain.inputs, retain.labels[:5]), FAST)
    broken = copy.deepcopy(trained(True))
    with torch.no_grad():
        broken.get_parameter("4.bias").fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        relearn(broken, forget, retain, FAST)
