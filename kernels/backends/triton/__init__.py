"""Tiles of a plan run by Triton kernels: the path of a GPU."""
