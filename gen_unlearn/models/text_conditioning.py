"""Prompts of classes, encoded once, so that training and sampling need no text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

EMPTY_PROMPT = ""
"""Prompt of the null class."""


class ClassPrompts(ModelMixin, ConfigMixin):
    """The encoded prompts of classes, and behind them that of the null class.

    Args:
        prompts: of each class; the empty one comes behind them by itself.
        tokens: length of an encoded prompt.
        dim: length of an encoded token.

    Attributes:
        embeddings: float32 ``(classes + 1, tokens, dim)``.
    """

    embeddings: Tensor

    @register_to_config
    def __init__(self, prompts: Sequence[str], tokens: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(len(prompts) + 1, tokens, dim))

    def forward(self, labels: np.ndarray) -> Tensor:
        """Map classes, int64 ``(batch,)``, -1 for the null class, to prompts ``(batch, tokens, dim)``."""
        return self.embeddings[torch.from_numpy(labels).to(self.embeddings.device)]

    def require(self, classes: int, dim: int | Sequence[int]) -> None:
        """Raise a ValueError unless these are the prompts of so many classes, for a network of such `dim`."""
        held, _, encoded = self.embeddings.shape
        if held != classes + 1:
            raise ValueError(f"expected prompts of {classes} classes, got {held - 1}; make them again")
        if dim != encoded:
            raise ValueError(
                f"expected prompts in {dim} dimensions, which the denoiser attends to, got {encoded}; take "
                "the text encoder and the denoiser from one pipeline"
            )


@torch.no_grad()
def class_prompts(
    text_encoder: Any, tokenizer: Any, class_names: Sequence[str], template: str
) -> ClassPrompts:
    """Encode the prompt of each class as Stable Diffusion does: the last hidden state, padded to full length.

    Args:
        text_encoder: a `CLIPTextModel`.
        tokenizer: the `CLIPTokenizer` that belongs to it.
        class_names: of the images.
        template: of the prompts, such as ``"a photo of a {}"``.

    Raises:
        ValueError: the template has no place for the class, or two classes get the same prompt.
    """
    if template.count("{}") != 1:
        raise ValueError(f"expected a prompt with one {{}} for the class, got {template!r}")
    texts = [template.replace("{}", name) for name in class_names]
    device = next(text_encoder.parameters()).device
    inputs = tokenizer(
        [*texts, EMPTY_PROMPT],
        padding="max_length",
        max_length=min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings),
        truncation=True,
        return_tensors="pt",
    )
    _require_different(texts, inputs.input_ids)
    mask = (
        inputs.attention_mask.to(device)
        if getattr(text_encoder.config, "use_attention_mask", False)
        else None
    )
    encoded = text_encoder(inputs.input_ids.to(device), attention_mask=mask).last_hidden_state.float().cpu()
    prompts = ClassPrompts(texts, *encoded.shape[1:])
    prompts.embeddings.copy_(encoded)
    return prompts.eval()


def _require_different(texts: Sequence[str], tokens: Tensor) -> None:
    """Raise a ValueError that names two prompts if the text encoder would not tell them from each other."""
    seen: dict[tuple[int, ...], str] = {}
    for text, row in zip([*texts, EMPTY_PROMPT], tokens.tolist(), strict=True):
        if tuple(row) in seen:
            raise ValueError(
                f"expected prompts that the tokenizer tells from each other, got {seen[tuple(row)]!r} and "
                f"{text!r}; give the classes names of its words, or the prompt another beginning"
            )
        seen[tuple(row)] = text
