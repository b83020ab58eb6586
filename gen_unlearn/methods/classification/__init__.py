"""Unlearning methods for classifiers, one file each."""
