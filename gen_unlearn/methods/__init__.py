"""Unlearning methods: approximate, gradient-based, and judged by what they leave behind."""
