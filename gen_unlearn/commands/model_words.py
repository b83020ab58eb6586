"""A model in words, for its report."""

from __future__ import annotations

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.config import RunConfig
from gen_unlearn.generator_ensemble_config import LoraEnsembleConfig
from gen_unlearn.runs import RunFolder
from gen_unlearn.words import counted

_FEW_CLASSES = 4


def encoder_words(config: ClassifierRunConfig) -> str:
    """Describe the encoder, without the places of files."""
    encoder = config.model.encoder
    text = {
        "cnn": f"cnn, width {encoder.width}, depth {encoder.depth}",
        "cifar-resnet18": f"cifar-resnet18, width {encoder.width}",
        "torchvision": f"torchvision, {encoder.name}",
        "transformers": "transformers",
    }[encoder.kind]
    frozen = config.training.encoder_run is not None or config.model.kind == "adapter-ensemble"
    return f"{text}, frozen" if frozen else text


def backbone_words(run: RunFolder, config: RunConfig) -> str:
    """Say what an ensemble that generates adapts, and what it was trained on, without the places of files."""
    if config.model.weights is not None:
        return "weights from elsewhere, frozen; what they saw is not known here"
    public = (
        f"{counted(len(run.core_ids), 'public image')} of the core" if run.core_path.exists() else "the core"
    )
    return f"{config.model.backbone} UNet, trained on {public}, frozen"


def adapter_words(run: RunFolder) -> str:
    """Say how many adapters there are, of which kind, and how many cannot answer."""
    config, stored = run.recipe.model.adapters, run.adapter_folder()
    empty, waiting = config.count - len(stored.sizes), len(stored.waiting)
    if isinstance(config, LoraEnsembleConfig):
        text = (
            f"{config.count:,} LoRA adapters of rank {config.lora.rank}, {config.neighbours} for each image"
        )
    else:
        text = f"{config.count:,} {config.family} heads, {config.neighbours} asked for each image"
    if empty:
        text += (
            f"; {counted(empty, 'adapter')} without images, which {'do' if empty > 1 else 'does'} not answer"
        )
    if waiting:
        text += f"; {counted(waiting, 'adapter')} waiting to be rebuilt, masked until then"
    return text


def per_class(exemplars: dict[str, int]) -> str:
    """Write the range of the numbers of exemplars, and which classes have none."""
    counts = [count for count in exemplars.values() if count]
    empty = [name for name, count in exemplars.items() if not count]
    if not counts:
        return "none"
    low, high = min(counts), max(counts)
    text = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    if not empty:
        return text
    few = len(empty) <= _FEW_CLASSES
    named = (
        f"{'class' if len(empty) == 1 else 'classes'} {', '.join(empty)}" if few else f"{len(empty)} classes"
    )
    return f"{text}; none of {named}"
