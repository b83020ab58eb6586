"""The training of classifiers: it learns, repeats itself to the byte, and continues as if not stopped."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit import fit_classifier
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_recipe
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.models.classifier import ParametricClassifier, SemiParametricClassifier, build_classifier
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.voting import class_mean_vote, exemplar_vote
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.checkpoint import CheckpointFolder, TrainingInterruptedError
from gen_unlearn.training.classification import ClassificationLoss, build_optimizer
from gen_unlearn.training.classification_batches import (
    Augmentation,
    BatchMates,
    ClassificationBatch,
    ClassificationBatches,
    SupportSampling,
)
from gen_unlearn.training.classification_config import ClassifierTrainingConfig

RECIPE = Path(__file__).parents[2] / "configs" / "digits_spm_classifier.yaml"
TINY = (
    "data.test_fraction=0.5",
    "model.encoder.width=4",
    "model.encoder.depth=0",
    "model.key_dim=8",
    "training.images=160",
    "training.batch_size=16",
    "training.warmup_images=32",
    "training.support_per_class=[1, 3]",
)
PARAMETRIC = "model.kind=parametric"
SAMPLED = "training.exemplars=sampled"
KINDS = [
    (),
    ("training.vote=exemplars", "model.experts=2", SAMPLED),
    ("model.experts=2", "training.optimizer=sgd", "training.shift=1", "training.horizontal_flip=true"),
    (PARAMETRIC,),
]
VARIANTS = pytest.mark.parametrize("extra", KINDS, ids=["prototypes", "exemplars", "sgd", "parametric"])


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Let each test choose its precision: Accelerate keeps it for the life of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def data(digits_split: Split) -> IndexedImages:
    return digits_split.train.select(np.arange(120))


def recipe(*overrides: str) -> ClassifierRunConfig:
    config = load_recipe(RECIPE, [*TINY, *overrides])
    assert isinstance(config, ClassifierRunConfig)
    return config


def trained(
    config: ClassifierRunConfig, data: IndexedImages, folder: Path | None = None
) -> dict[str, Tensor]:
    checkpoints = None if folder is None else CheckpointFolder(folder, config.digest)
    model, progress = fit_classifier(config, data, checkpoints=checkpoints)
    assert math.isfinite(progress.loss)
    assert progress.step == config.training.steps
    assert not model.network.training
    return model.network.state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@contextmanager
def interrupted(step: int, error: Exception | None = None) -> Iterator[None]:
    """Press Ctrl-C, or fail with `error`, while the batch of a step is being made."""
    original = ClassificationBatches.__getitem__

    def getitem(self: ClassificationBatches, asked: int) -> ClassificationBatch:
        if asked == step:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGINT)
        return original(self, asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationBatches, "__getitem__", getitem)
        yield


@VARIANTS
def test_weights_move_and_depend_on_the_seed_alone(data: IndexedImages, extra: tuple[str, ...]) -> None:
    config = recipe(*extra)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    fresh = build_classifier(config.model, data.image_shape, 10).state_dict()
    one = trained(config, data)
    torch.manual_seed(99)
    np.random.seed(99)
    assert_equal(one, trained(config, data))
    other = trained(replace(config, seed=1), data)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    still = {name for name in one if torch.equal(one[name], fresh[name])}
    assert still <= ({"gate.weight", "gate.bias"} if config.model.experts == 1 else set())


@pytest.mark.parametrize(
    "extra",
    [*KINDS, (SAMPLED,), ("training.vote=exemplars",)],
    ids=["prototypes", "sampled exemplars", "sgd", "parametric", "sampled prototypes", "exemplars"],
)
def test_the_loss_falls(data: IndexedImages, extra: tuple[str, ...]) -> None:
    rate = "0.3" if "training.optimizer=sgd" in extra else "2e-2"
    settings = ("training.images=1600", f"training.learning_rate={rate}")
    config = recipe(*settings, *extra, "training.shift=0", "training.horizontal_flip=false")
    torch.manual_seed(derive_seed(config.seed, "weights"))
    fresh = build_classifier(config.model, data.image_shape, 10)
    model, progress = fit_classifier(config, data)
    for exemplars in (SupportSampling(3, 3), BatchMates()):
        batch = ClassificationBatches(data, 48, 1, 7, Augmentation(), exemplars)[0]
        before, after = (
            ClassificationLoss(network, config.training.vote, 10)(batch).item()
            for network in (fresh.eval(), model.network)
        )
        assert before > 2.0
        assert after < 0.92 * before
    assert progress.loss < 2.28, "what is reported falls too, although it lags behind"


@VARIANTS
def test_continues_after_ctrl_c_as_if_it_had_not_stopped(
    data: IndexedImages, extra: tuple[str, ...], tmp_path: Path
) -> None:
    config = recipe(*extra)
    uninterrupted, handler = trained(config, data), signal.getsignal(signal.SIGINT)
    with interrupted(6), pytest.raises(TrainingInterruptedError) as stopped:
        trained(config, data, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.value.done == 7 * 16
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    with interrupted(9), pytest.raises(TrainingInterruptedError):
        trained(config, data, tmp_path)
    assert_equal(uninterrupted, trained(config, data, tmp_path))


def test_continues_from_the_newest_resume_point_after_a_crash(data: IndexedImages, tmp_path: Path) -> None:
    config = recipe("training.checkpoint_images=48", "model.experts=2")
    uninterrupted = trained(config, data)
    with interrupted(7, RuntimeError("out of memory")), pytest.raises(RuntimeError, match="memory"):
        trained(config, data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"], "older ones are dropped"
    assert_equal(uninterrupted, trained(config, data, tmp_path))


def test_refuses_resume_points_of_another_recipe(data: IndexedImages, tmp_path: Path) -> None:
    with interrupted(6), pytest.raises(TrainingInterruptedError):
        trained(recipe(), data, tmp_path)
    with pytest.raises(ValueError, match=r"step-00000007 belongs to another recipe"):
        trained(recipe("seed=1"), data, tmp_path)


def test_leaves_the_random_numbers_of_the_caller_alone(data: IndexedImages) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(recipe(), data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("vote", ["prototypes", "exemplars"])
def test_mixed_precision_leaves_full_precision_weights(data: IndexedImages, vote: str) -> None:
    settings = (f"training.vote={vote}", "model.experts=2")
    half = trained(recipe("training.mixed_precision=bf16", *settings), data)
    assert {value.dtype for value in half.values() if value.is_floating_point()} == {torch.float32}
    full = trained(recipe(*settings), data)
    floating = [name for name in full if full[name].is_floating_point()]
    assert 0 < max((full[name] - half[name]).abs().max() for name in floating) < 0.2


# --- a frozen encoder


@pytest.fixture(scope="module")
def parametric_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parametric") / "run"
    train(recipe(PARAMETRIC, "training.images=32"), path)
    return path


def test_a_frozen_encoder_stays_bit_for_bit_and_the_fusion_learns(
    data: IndexedImages, parametric_run: Path, tmp_path: Path
) -> None:
    config = recipe(f"training.encoder_run={parametric_run}", "model.experts=2")
    source = ParametricClassifier.from_pretrained(parametric_run / "model" / "classifier").state_dict()
    encoder = {name: value for name, value in source.items() if name.startswith("encoder.")}
    assert any("running_mean" in name for name in encoder)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    fresh = build_classifier(config.model, data.image_shape, 10).state_dict()
    found = trained(config, data)
    assert_equal({name: found[name] for name in encoder}, encoder)
    learnt = found.keys() - encoder.keys()
    assert learnt == {"to_query.weight", "to_key.weight", "gate.weight", "gate.bias"}
    assert not [name for name in learnt if torch.equal(found[name], fresh[name])]
    with interrupted(6), pytest.raises(TrainingInterruptedError):
        trained(config, data, tmp_path)
    assert_equal(found, trained(config, data, tmp_path))


def test_the_run_of_a_frozen_encoder_must_fit(
    data: IndexedImages, parametric_run: Path, tmp_path: Path
) -> None:
    wider = recipe(f"training.encoder_run={parametric_run}", "model.encoder.width=8")
    with pytest.raises(ValueError, match=r"expected an encoder .*got .*use the same model\.encoder"):
        trained(wider, data)
    with pytest.raises(ValueError, match="holds no run"):
        trained(recipe(f"training.encoder_run={tmp_path / 'none'}"), data)
    with pytest.raises(ValueError, match="needs a semi-parametric model, got parametric"):
        recipe(f"training.encoder_run={parametric_run}", PARAMETRIC)
    with pytest.raises(ValueError, match=r"core\.mode public promises .*model\.encoder\.weights"):
        recipe(f"training.encoder_run={parametric_run}", "core.mode=public")
    train(recipe("training.images=16"), tmp_path / "voting")
    with pytest.raises(ValueError, match=r"expected a parametric run as training\.encoder_run"):
        trained(recipe(f"training.encoder_run={tmp_path / 'voting'}"), data)


def test_an_encoder_that_was_changed_since_its_training_is_refused(
    data: IndexedImages, parametric_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(parametric_run, tmp_path / "copy"))
    config = recipe(f"training.encoder_run={copy}", "training.images=16")
    trained(config, data)
    (file,) = (copy / "model" / "classifier").glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("encoder.") and name.endswith("weight"))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"expected the weights that .*copy was trained to .*put it back"):
        trained(config, data)


# --- loss and optimiser


def network(experts: int = 1) -> SemiParametricClassifier:
    torch.manual_seed(0)
    encoder = EncoderConfig(width=4, depth=0)
    built = build_classifier(ClassifierConfig(encoder=encoder, key_dim=8, experts=experts), (8, 8, 1), 4)
    assert isinstance(built, SemiParametricClassifier)
    return built


def mates(images: Tensor, labels: list[int], names: list[int]) -> ClassificationBatch:
    """Make a step whose images are exemplars for each other; images of equal names are copies."""
    known, which = torch.tensor(labels), torch.tensor(names)
    return step(images, known, images[:0], known, which[:, None] != which, mates=True)


def step(
    images: Tensor,
    labels: Tensor,
    support: Tensor,
    support_labels: Tensor,
    allowed: Tensor,
    mates: bool = False,
) -> ClassificationBatch:
    """Make a step of one process."""
    known = (allowed & (support_labels == labels[:, None])).any(dim=1)
    counted = known.sum().clamp_min(1).float()
    return ClassificationBatch(images, labels, support, support_labels, allowed, counted, mates)


def finite(model: nn.Module) -> bool:
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


VOTE = pytest.mark.parametrize("vote", ["prototypes", "exemplars"])


@VOTE
@pytest.mark.parametrize("experts", [1, 2])
def test_images_of_a_class_without_exemplars_do_not_count(vote: str, experts: int) -> None:
    model = network(experts).eval()
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 3])
    support, of_support = torch.randn(4, 1, 8, 8), torch.tensor([0, 0, 1, 2])
    loss = ClassificationLoss(model, vote, 4)
    allowed = torch.ones(3, 4, dtype=torch.bool)
    found = loss(step(images, labels, support, of_support, allowed))
    known = loss(step(images[:2], labels[:2], support, of_support, allowed[:2]))
    torch.testing.assert_close(found, known)
    found.backward()
    assert finite(model)
    none = loss(step(images[2:], labels[2:], support, of_support, allowed[2:]))
    assert none.item() == 0.0


@VOTE
@pytest.mark.parametrize("experts", [1, 2])
def test_an_image_alone_in_its_class_votes_and_does_not_count(vote: str, experts: int) -> None:
    """Of class 1 there is one image, of class 2 one and its copy; neither has another image to ask."""
    model = network(experts).eval()
    images = torch.randn(7, 1, 8, 8)
    images[5] = images[4]
    loss, counting = ClassificationLoss(model, vote, 4), [0, 1, 2, 6]
    batch = mates(images, [0, 0, 0, 1, 2, 2, 0], [0, 1, 2, 3, 4, 4, 6])
    found = loss(batch)
    rest = batch._replace(images=images[counting], labels=batch.labels[counting])
    rest = rest._replace(
        support=images, allowed=batch.allowed[counting], counted=torch.tensor(4.0), mates=False
    )
    torch.testing.assert_close(found, loss(rest))
    renamed = mates(images, [0, 0, 0, 3, 1, 1, 0], [0, 1, 2, 3, 4, 4, 6])
    torch.testing.assert_close(found, loss(renamed))
    assert loss(mates(images[counting], [0] * 4, counting)).item() == pytest.approx(0, abs=1e-6)
    assert found > 0.1, "what does not count has a vote"
    model.train()
    loss(batch).backward()
    assert finite(model)


@VOTE
@pytest.mark.parametrize("experts", [1, 2])
def test_a_step_in_which_no_image_may_ask_another_teaches_nothing(vote: str, experts: int) -> None:
    """Copies of one image, and of two images, one of which then is all that the other's class has."""
    model = network(experts)
    images = torch.randn(2, 1, 8, 8)[[0, 1, 0, 0]]
    loss = ClassificationLoss(model, vote, 4)
    for batch in (mates(images[[0, 2, 3]], [2, 2, 0], [0] * 3), mates(images, [2, 1, 2, 2], [0, 1, 0, 0])):
        model.zero_grad()
        found = loss(batch)
        assert found.item() == 0
        found.backward()
        assert finite(model)
        assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


@VOTE
def test_an_image_that_may_ask_none_leaves_the_loss_of_the_others(vote: str) -> None:
    model = network(2).eval()
    images = torch.randn(6, 1, 8, 8)
    batch, loss = mates(images, [0, 1, 0, 1, 0, 1], [*range(6)]), ClassificationLoss(model, vote, 4)
    batch.allowed[5] = False
    batch = step(images, batch.labels, batch.support, batch.support_labels, batch.allowed, mates=True)
    found = loss(batch)
    torch.testing.assert_close(
        found,
        loss(step(images[:5], batch.labels[:5], images, batch.labels, batch.allowed[:5])),
    )
    found.backward()
    assert finite(model)


@VOTE
def test_half_precision_ends_before_the_vote(vote: str) -> None:
    """Which then has the loss that the queries, keys and gate of half precision have in full precision."""
    model = network(2).eval()
    images, loss = torch.randn(40, 1, 8, 8), ClassificationLoss(model, vote, 4)
    batch = mates(images, [row % 4 for row in range(40)], [*range(40)])
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(batch)
        features = model.encoder(images)
        parts = model.queries(features), model.keys(features), model.experts(features)
    fusion = class_mean_vote if vote == "prototypes" else exemplar_vote
    expected = fusion(parts[0], parts[1], batch.labels, 4, parts[2], batch.allowed)
    assert found.dtype == torch.float32
    assert torch.equal(found, -expected.gather(1, batch.labels[:, None]).mean())


def test_decay_is_for_matrices_and_kernels_alone() -> None:
    model = network(2)
    model.encoder.layers[0].requires_grad_(False)
    optimizer = build_optimizer(model, ClassifierTrainingConfig(weight_decay=0.3))
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in free["params"]} == {1}
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_stochastic_gradient_descent_has_nesterovs_momentum() -> None:
    linear = nn.Linear(2, 2)
    optimizer = build_optimizer(linear, ClassifierTrainingConfig(optimizer="sgd", learning_rate=0.5))
    assert isinstance(optimizer, torch.optim.SGD)
    settings = {(group["momentum"], group["nesterov"], group["lr"]) for group in optimizer.param_groups}
    assert settings == {(0.9, True, 0.5)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.support_per_class=[0, 3]", r"support_per_class must be \[least, greatest\] from 1 up"),
        ("training.support_per_class=[4, 3]", r"support_per_class .*got \[4, 3\]"),
        ("training.images=0", r"images must be at least 1, got 0"),
        ("training.batch_size=0", r"batch_size must be at least 1, got 0"),
        ("training.checkpoint_images=0", r"checkpoint_images must be at least 1, got 0"),
        ("training.learning_rate=0", r"learning_rate must be above 0, got 0"),
        ("training.weight_decay=-1", r"weight_decay must be at least 0, got -1"),
        ("training.shift=-1", r"shift must be at least 0, got -1"),
        ("training.optimizer=lion", r"training\.optimizer: .*adamw"),
        ("training.vote=nobody", r"training\.vote: .*prototypes"),
        ("training.exemplars=all", r"training\.exemplars: .*batch"),
    ],
)
def test_settings_out_of_range_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(override)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("training.exemplars=batch", "a semi-parametric model: alone, an image has no other"),
        (SAMPLED, "a semi-parametric model"),
        (PARAMETRIC, "an encoder with batch normalisation: alone"),
    ],
)
def test_steps_of_one_image_that_cannot_train_are_refused_before_a_folder_is_written(
    tmp_path: Path, kind: str, message: str
) -> None:
    config = recipe("training.batch_size=1", kind)
    with pytest.raises(ValueError, match=rf"training\.batch_size of at least 2, got 1, for {message}"):
        train(config, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_steps_of_one_image_train_what_has_no_batch_normalisation(
    data: IndexedImages, tmp_path: Path
) -> None:
    sizes = ViTConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=8,
        patch_size=4,
    )
    ViTModel(sizes).save_pretrained(tmp_path)
    encoder = EncoderConfig(kind="transformers", weights=str(tmp_path))
    config = recipe(PARAMETRIC, "training.batch_size=1", "training.images=4")
    trained(replace(config, model=replace(config.model, encoder=encoder)), data)


def test_a_batch_must_leave_exemplars(data: IndexedImages) -> None:
    with pytest.raises(ValueError, match=r"batch_size \(64\) must be at most half of the 120 images"):
        trained(recipe("training.batch_size=64", SAMPLED), data)
    for kind in (PARAMETRIC, "training.exemplars=batch"):
        trained(recipe("training.batch_size=64", "training.images=64", kind), data)
