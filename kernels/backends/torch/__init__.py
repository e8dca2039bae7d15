"""Attention over a plan in torch operations: the path of a CPU."""
