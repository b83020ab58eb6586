"""Unlearning methods for diffusion models, one file each."""
