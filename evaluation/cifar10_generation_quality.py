"""How well the generators on CIFAR-10 (JPEG) generate, before and after a class is deleted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cifar10_generation_world import DDPM, SPM, World, arithmetic
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, describe, train
from gen_unlearn.judging.evidence import in_proportion, of_classes
from gen_unlearn.metrics.estimate import proportion
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SampleSet

Found = dict[str, Any]
_OF_NETWORK = ("images", "loss", "parameters", "weights_digest")


def trained(world: World, recipe: str) -> Found:
    """Train a recipe; say what that took."""
    return _facts(world.run(recipe))


def _facts(run: RunFolder) -> Found:
    """Return what a training took: images that it read, and seconds, which are those of all parts."""
    facts, config = describe(run), run.config
    found = {name: facts[name] for name in ("recipe", "seconds_train")}
    network = {name: facts[name] for name in _OF_NETWORK} | arithmetic(config.training.mixed_precision)
    if not run.is_ensemble:
        return found | network | {"images_per_second": facts["images"] / max(facts["seconds_train"], 1e-9)}
    router, adapters = config.model.router.training, config.model.adapters
    found |= {f"backbone_{name}": value for name, value in network.items()}
    found["adapter_images"] = adapters.neighbours * adapters.lora.epochs * len(run.exemplar_folder().labels)
    found["router_images"] = router.steps * router.batch_size
    return found


def real_images(world: World) -> Found:
    """Put training images in the place of generated ones, and held-out ones before the judge."""
    config, data = world.config(DDPM).evaluation, world.split
    some = in_proportion(data.train, config.images_per_class * len(data.train.class_names))
    real = SampleSet(some.all_images(), some.labels, np.arange(len(some)))
    test = data.test.all_images()
    held_out = SampleSet(test, data.test.labels, np.arange(len(test)))
    return {
        "training_images": {"count": len(data.train), "digest": data.train.digest},
        "held_out_images": {"count": len(data.test), "digest": data.test.digest},
        "frechet": world.frechet(real, data.test),
        "recognised": _recognised(world, held_out),
    }


def quality(world: World, recipe: str) -> Found:
    """Compare the images of a recipe's run with held-out ones."""
    return _quality(world, world.run(recipe), range(len(world.split.train.class_names)))


def _quality(world: World, run: RunFolder, classes: range | list[int]) -> Found:
    """Compare the images of some classes with held-out ones of these."""
    samples = world.samples(run)
    generated = samples.of_classes(list(classes))
    found = {
        "frechet": world.frechet(generated, of_classes(world.split.test, list(classes))),
        "recognised": _recognised(world, generated),
    }
    if len(samples.null.labels):
        shown = world.recogniser.recognise(samples.null.images) == world.forgotten
        found["forgotten_class_without_a_class"] = proportion(int(shown.sum()), len(shown)).as_dict()
    return found


def _recognised(world: World, samples: SampleSet) -> dict[str, float]:
    right = world.recogniser.recognise(samples.images) == samples.labels
    return proportion(int(right.sum()), len(right)).as_dict()


def retrained(world: World, recipe: str) -> Found:
    """Train a recipe without the class that is forgotten; say what that took."""
    return _facts(_oracle(world, recipe))


def retrained_quality(world: World, recipe: str) -> Found:
    """Compare images of retained classes with held-out ones: of the run, and of that without the class."""
    return {
        "before": _quality(world, world.run(recipe), world.retained),
        "oracle": _quality(world, _oracle(world, recipe), world.retained),
    }


def class_deletion(world: World) -> Found:
    """Compare the generator that a class was deleted from with the one that is trained without it.

    All distances are between images of retained classes. ``retrain_gap`` is that of images after the deletion
    to the oracle's, from the same noise; ``noise_floor`` that of the oracle's to its own from other noise.
    One oracle shows no noise of training seeds.
    """
    before, after, oracle = world.run(SPM), deleted(world), _oracle(world, SPM)
    drawn = {
        name: world.samples(run).of_classes(world.retained)
        for name, run in (("before", before), ("after", after), ("oracle", oracle))
    }
    again = world.samples(oracle, again=True).of_classes(world.retained)
    receipt = after.receipts()[-1]
    return {
        "class": world.plan.forgotten,
        "removed": receipt.removed,
        "level": receipt.level,
        "after": _quality(world, after, world.retained),
        "retrain_gap": world.frechet(drawn["after"], drawn["oracle"]),
        "gap_before": world.frechet(drawn["before"], drawn["oracle"]),
        "noise_floor": world.frechet(again, drawn["oracle"]),
        **retrained_quality(world, SPM),
    }


def deleted(world: World) -> RunFolder:
    """Return a copy of the run with a joint core from which the class was deleted."""
    path = world.out / "cifar10_spm-deleted"
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.unfinished")
        copy = copied(world.run(SPM), unfinished)
        request = ForgetRequest(classes=(world.plan.forgotten,))
        forget(copy, request.resolve(copy).forget_set, keep_comparison=True)
        unfinished.rename(path)
    return RunFolder.open(path)


def copied(run: RunFolder, path: Path) -> RunFolder:
    """Copy a run in the place of an earlier copy."""
    shutil.rmtree(path, ignore_errors=True)
    return RunFolder.open(Path(shutil.copytree(run.path, path)))


def _oracle(world: World, recipe: str) -> RunFolder:
    """Return the run of a recipe that is trained without the class, which is trained where it is not."""
    tombstones, origin = deleted_from([deleted(world).path])
    path = world.out / f"{recipe}-oracle"
    return train(world.config(recipe), path, tombstones, origin, f"train {recipe} without the class")
