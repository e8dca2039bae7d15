"""Peak memory of neighbourhood attention in the diffusion decoder of LTX-2.5, by the number of tokens.

    python -m benchmarks.decoder --out benchmarks/results/decoder.md

One attention module with the kernel of the last stage, 11x11x11, and one head of 64: `peak` is what a forward takes
above its input, the making of the plan included; `mask` is what diffusers takes for a mask of all pairs of tokens.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoVaeNeighborhoodAttention

import diffattn

from .timing import memory

GRIDS = ((12, 24, 32), (24, 24, 32), (48, 24, 32), (48, 32, 48))
KERNEL, WIDTH = (11, 11, 11), 64
HEADER = ("grid", "tokens", "peak, MiB", "peak by token, KiB", "mask, GiB")


def row(grid: tuple[int, int, int], device: str) -> tuple[str, ...]:
    """One line of the table."""
    tokens = math.prod(grid)
    module = LTX2VideoVaeNeighborhoodAttention(WIDTH, KERNEL, head_dim=WIDTH).to(device).eval()
    diffattn.enable_decoder(module)
    states = torch.randn(1, *grid, WIDTH, device=device)
    with torch.no_grad():
        peak = memory(lambda: module(states), device)
    by_token = peak / tokens / 2**10
    cells = (f"{tokens:,}", f"{peak / 2**20:.0f}", f"{by_token:.1f}", f"{tokens**2 / 2**30:.2f}")
    return "x".join(map(str, grid)), *cells


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoder", description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row((11, 11, 11), device)  # what libraries take once
    rows = [HEADER, ("---",) * len(HEADER), *(row(grid, device) for grid in GRIDS)]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"
    title = f"# Peak memory of the decoder of LTX-2.5, on {device}\n\n`python -m benchmarks.decoder`\n\n"
    if args.out:
        args.out.write_text(title + text, encoding="utf-8")
    else:
        print(title + text)


if __name__ == "__main__":
    main()
