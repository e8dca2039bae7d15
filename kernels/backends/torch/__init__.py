"""Tiles of a plan run with torch operations: the path of a CPU."""
