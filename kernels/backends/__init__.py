"""Executors of a plan: the float64 reference, tiles on a CPU in torch, tiles on a GPU in Triton."""
