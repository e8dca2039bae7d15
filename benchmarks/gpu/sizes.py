"""How large the shapes of `benchmarks.gpu` are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffattn import TokenGrid

VIDEO = TokenGrid(21, 45, 80)  # Wan at 720p, 81 frames


@dataclass(frozen=True)
class Sizes:
    """Shapes: those of Wan and HunyuanVideo at 480p and 720p by default.

    Args:
        impl (`str`): what is checked and timed.
        lengths (`tuple[int, ...]`): tokens of the speed table, multiples of 128.
        heads (`tuple[int, ...]`): of the speed table.
        grid (`TokenGrid`): on which methods plan, with the last of `heads`.
        seconds (`float`): for one measurement.
    """

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    impl: str = "triton"
    dims: tuple[int, ...] = (64, 128)
    lengths: tuple[int, ...] = (32768, 75648)
    heads: tuple[int, ...] = (24, 40)
    densities: tuple[float, ...] = (0.1, 0.2)
    grid: TokenGrid = VIDEO
    seconds: float = 1.0

    @classmethod
    def tiny(cls) -> Sizes:
        """Sizes for a dry run on a CPU."""
        return cls("cpu", torch.float32, "torch", (32,), (256,), (2,), (0.5,), TokenGrid(3, 8, 8), 0.0)
