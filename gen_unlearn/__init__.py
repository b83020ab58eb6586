"""Generative-model unlearning: models that forget training images, and the tools that check it."""

__version__ = "0.1.0"
