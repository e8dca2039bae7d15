"""The latent space, analytically: 4x4 average pooling, then half-chunk mean and difference over time.

The wired encoder in `vae.py` computes the same numbers, so the transformer trains without running a VAE.
"""

import torch
import torch.nn.functional as F

CHANNELS = 6
LATENTS_MEAN = [0.0] * 6
LATENTS_STD = [0.7] * 3 + [0.15] * 3
PATCH = 2
REFERENCE_GRID = (9, 16, 16)


def analytic_latents(video: torch.Tensor) -> torch.Tensor:
    """(B, 1 + 4n, 3, H, W) in [-1, 1] -> unnormalised latents (B, 6, 1 + n, H/4, W/4).

    A chunk of four frames becomes (a + b) / 2 and (b - a) / 2, with a and b the means of its halves;
    the first frame stands alone with difference 0.
    """
    batch, frames, _, height, width = video.shape
    pooled = F.avg_pool2d(video.flatten(0, 1), 4).view(batch, frames, 3, height // 4, width // 4)
    halves = pooled[:, 1:].unflatten(1, (-1, 2, 2)).mean(3)
    mean = torch.cat([pooled[:, :1], halves.mean(2)], 1)
    difference = F.pad((halves[:, :, 1] - halves[:, :, 0]) / 2, (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([mean, difference], 2).transpose(1, 2)


def normalise(latents: torch.Tensor) -> torch.Tensor:
    """What the pipeline undoes before decoding: (latents - mean) / std per channel."""
    mean, std = (latents.new_tensor(values).view(1, CHANNELS, 1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    return (latents - mean) / std


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W) -> (B, T * H/P * W/P, P P C) for patches of P x P, each ordered (row, column, channel)."""
    batch, channels, frames, height, width = latents.shape
    patches = latents.view(batch, channels, frames, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 3, 5, 4, 6, 1).reshape(batch, -1, PATCH * PATCH * channels)


def positions(grid: tuple[int, int, int]) -> torch.Tensor:
    """(T * H * W, 3): where each token's centre lies on the reference grid of 9 x 16 x 16 tokens.

    On that grid these are the integers that WanRotaryPosEmbed uses. Coarser grids get positions that lie farther
    apart, so that what is learned there carries over, but never more than 2: the fastest rotary pair turns a radian
    per position, and neighbours near its full turn would look like one place. Longer and wider grids count on, as
    the stock pipeline does.
    """
    frames, height, width = grid
    index = torch.arange(frames, dtype=torch.float32)
    stretch = max((REFERENCE_GRID[0] - 1) / max(frames - 1, 1), 1.0)
    # Chunk k >= 1 is centred on frame 4k - 1.5, the first one on frame 0: the half-chunk offset does not stretch.
    time = torch.where(index > 0, stretch * (index - 0.375) + 0.375, index)
    step = [min(max(reference / side, 1.0), 2.0) for reference, side in zip(REFERENCE_GRID[1:], grid[1:], strict=True)]
    rows, columns = ((torch.arange(side) + 0.5) * s - 0.5 for side, s in zip((height, width), step, strict=True))
    return torch.stack(torch.meshgrid(time, rows, columns, indexing="ij"), -1).view(-1, 3)
