"""Implementations of attention over a plan: float64 reference, torch, Triton, and dense attention."""
