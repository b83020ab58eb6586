"""Protocols and results: which models and seeds, and what is recorded. Formulas live in the package."""
