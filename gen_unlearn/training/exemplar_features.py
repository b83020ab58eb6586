"""The encoded exemplars of a training, kept for as many steps as the recipe says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from gen_unlearn.models.unet import SemiParametricUNet2DModel


@dataclass
class ExemplarFeatures:
    """Encodes exemplars in the first of the steps for which they stay, with the weights of that step.

    Attributes:
        network: the encoder, if it is semi-parametric.
        accelerator: has the precision of the training.
        refresh_steps: steps for which exemplars stay; 1 leaves the encoding to the network.
        kept: the features, under the number of their refresh. Resume points hold them, as the weights that
            they were encoded with are gone.
    """

    network: ModelMixin
    accelerator: Accelerator
    refresh_steps: int
    kept: dict[str, Tensor] = field(default_factory=dict)

    def add_to(self, conditioning: dict[str, Any], step: int) -> None:
        """Add the ``features`` of the ``exemplars`` to what the network is given in a step."""
        if self.refresh_steps == 1 or not isinstance(self.network, SemiParametricUNet2DModel):
            return
        refresh = str(step // self.refresh_steps)
        if refresh not in self.kept:
            self.kept.clear()
            with self.accelerator.autocast():
                features = self.network.exemplar_features(conditioning["exemplars"])
            self.kept[refresh] = features.contiguous()
        conditioning["features"] = self.kept[refresh]
