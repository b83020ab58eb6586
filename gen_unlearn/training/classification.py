"""Train a classifier: one loop for the semi-parametric model and for its parametric reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.models.classifier import ClassifierNetwork, ParametricClassifier, SemiParametricClassifier
from gen_unlearn.models.voting import class_mean_vote, exemplar_vote
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.classification_batches import ClassificationBatch, ClassificationBatches
from gen_unlearn.training.classification_config import ClassifierTrainingConfig
from gen_unlearn.training.gathering import of_all_processes
from gen_unlearn.training.schedule import learning_rate
from gen_unlearn.training.steps import batch_loader, counted_steps
from gen_unlearn.training.support import require_supported


class ClassificationLoss(nn.Module):
    """The loss of a step: cross-entropy of logits, or of the vote of the step's exemplars.

    Attributes:
        network: what is trained.
        vote: who votes, see `ClassifierTrainingConfig`.
        num_classes: number of classes.
        num_processes: how many share a step.
    """

    def __init__(
        self, network: ClassifierNetwork, vote: str, num_classes: int, num_processes: int = 1
    ) -> None:
        super().__init__()
        self.network = network
        self.vote = vote
        self.num_classes = num_classes
        self.num_processes = num_processes

    def forward(self, batch: ClassificationBatch) -> Tensor:
        """Return the mean over images; those of a class that the step has no exemplar of do not count.

        The loss of the whole step is the mean over processes.
        """
        if isinstance(self.network, ParametricClassifier):
            return F.cross_entropy(self.network(batch.images).float(), batch.labels)
        allowed = batch.allowed | ~batch.allowed.any(dim=1, keepdim=True)
        log_probabilities = self._vote(self.network, batch, allowed)
        known = (batch.allowed & (batch.support_labels == batch.labels[:, None])).any(dim=1)
        losses = -log_probabilities.gather(1, batch.labels[:, None]).squeeze(1)
        return torch.where(known, losses, 0.0).sum() / batch.counted

    def _vote(self, network: SemiParametricClassifier, batch: ClassificationBatch, allowed: Tensor) -> Tensor:
        """Return log-probabilities ``(batch, classes)``; images and exemplars pass the encoder together."""
        features = network.encoder(torch.cat([batch.images, batch.support]))
        asking = features[: len(batch.images)]
        keys = network.keys(asking if batch.mates else features[len(batch.images) :])
        if self.num_processes > 1:
            keys = of_all_processes(keys.float(), len(batch.support_labels))
        vote = class_mean_vote if self.vote == "prototypes" else exemplar_vote
        queries, gate = network.queries(asking), network.experts(asking)
        with torch.autocast(queries.device.type, enabled=False):  # Half precision is too coarse for scores.
            return vote(queries, keys, batch.support_labels, self.num_classes, gate, allowed)


def train_classifier(
    network: ClassifierNetwork,
    batches: ClassificationBatches,
    config: ClassifierTrainingConfig,
    accelerator: Accelerator,
    checkpoints: CheckpointFolder | None = None,
    description: str = "train",
) -> Progress:
    """Train a classifier in place. Continues from the newest resume point, exactly as if it had not stopped.

    Args:
        network: what to train; parameters that need no gradient stay as they are, and an encoder that has
            no others stays in evaluation mode.
        batches: what each step sees.
        config: hyper-parameters.
        accelerator: device, precision and trackers.
        checkpoints: where resume points go; `None` for none.
        description: shown before the progress bar.

    Returns:
        Steps, seconds and mean loss at the end, interrupted parts included.

    Raises:
        TrainingInterruptedError: Ctrl-C; a resume point was written if there is a place for it.
        ValueError: see `require_supported`.
    """
    require_supported(accelerator)
    classes = len(batches.data.class_names)
    objective = ClassificationLoss(network, config.vote, classes, accelerator.num_processes)
    wrapped, optimizer = accelerator.prepare(objective, build_optimizer(network, config))
    wrapped.train()
    if not any(parameter.requires_grad for parameter in network.encoder.parameters()):
        network.encoder.eval()

    with counted_steps(config, accelerator, description, checkpoints) as steps:
        positions = range(steps.done.step, len(batches))
        for host_batch in batch_loader(batches, positions, config.dataloader_workers):
            rate = learning_rate(config, steps.images)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = wrapped(host_batch.to(accelerator.device))
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)  # Which it divides by.
            accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            steps.finish(loss.detach(), rate)

    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    network.eval()
    return steps.agreed_progress()


def build_optimizer(network: nn.Module, config: ClassifierTrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that need gradients; biases and norms do not decay."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, config.learning_rate)
