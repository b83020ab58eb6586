"""What unlearning costs: samples that pass the network forward and backward, seconds, memory."""

from __future__ import annotations

from dataclasses import dataclass


class BudgetExceededError(ValueError):
    """An unlearning method read more samples than it may."""


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Attributes:
        forward_samples: samples that passed a network forward, teachers and helpers included.
        backward_samples: samples whose gradients were taken.
        seconds: wall-clock seconds, with the device synchronised.
        peak_memory: most bytes that the accelerator held; `None` on a CPU.
    """

    forward_samples: int
    backward_samples: int
    seconds: float = 0.0
    peak_memory: int | None = None

    @property
    def passes(self) -> float:
        """Equivalent training passes of one sample: a backward pass counts twice a forward pass."""
        return (self.forward_samples + 2 * self.backward_samples) / 3


class Budget:
    """Count the samples that a method reads, and stop it at a cap.

    Everything counts that evaluates a network on a sample: training steps, saliency, Fisher information,
    teachers, adversarial examples.

    Args:
        cap: most passes, see `Cost.passes`; `None` for no limit.
    """

    def __init__(self, cap: float | None = None) -> None:
        self.cap = cap
        self.forward_samples = 0
        self.backward_samples = 0

    def count(self, *, forward: int = 0, backward: int = 0) -> None:
        """Add samples that are about to pass forward and backward.

        Raises:
            BudgetExceededError: they do not fit into the cap.
        """
        self.forward_samples += forward
        self.backward_samples += backward
        if self.cap is not None and self.cost.passes > self.cap:
            raise BudgetExceededError(
                f"expected at most {self.cap:,.0f} sample passes, the method asks for "
                f"{self.cost.passes:,.0f}; lower its epochs or raise the cap"
            )

    @property
    def cost(self) -> Cost:
        """What was counted so far."""
        return Cost(self.forward_samples, self.backward_samples)
