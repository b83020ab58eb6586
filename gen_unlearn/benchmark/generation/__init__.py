"""The generation benchmark: diffusion models that unlearn, and how they are compared."""
