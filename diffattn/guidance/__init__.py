"""Guidance by perturbed attention heads and skipped blocks."""
