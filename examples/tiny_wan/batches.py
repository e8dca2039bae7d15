"""What one training step sees: a token grid or some frames of it, noise levels, clean tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.tiny_wan.latents import PATCH, analytic_latents, normalise, positions, to_tokens
from examples.tiny_wan.model import SHIFT
from examples.tiny_wan.scenes import Scene, frame_times, render


@dataclass(frozen=True)
class GridSpec:
    """`TxHxW[/n]:weight:batch`: a token grid, how many of its frames are kept, its odds and its batch size."""

    grid: tuple[int, int, int]
    frames: int
    weight: float
    batch: int

    @classmethod
    def parse(cls, text: str) -> "GridSpec":
        """Read the command-line form, for example 9x8x8/2:1:8."""
        shape, weight, batch = text.split(":")
        grid, _, kept = shape.partition("/")
        frames, height, width = map(int, grid.split("x"))
        return cls((frames, height, width), int(kept or frames), float(weight), int(batch))


def sample_sigmas(rng: np.random.Generator, count: int) -> Tensor:
    """(count,) noise levels, stratified: 55 % logit-normal and 15 % uniform under the scheduler's shift, 30 % high.

    Where an object goes is settled between 0.85 and 1, and takes longest to learn.
    """
    strata = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count)
    normal = torch.sigmoid(torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)))
    kind = torch.from_numpy(rng.random(count))
    base = torch.where(kind < 0.55, normal, strata)
    shifted = SHIFT * base / (1 + (SHIFT - 1) * base)
    return torch.where(kind < 0.7, shifted, 0.85 + 0.15 * strata).float()


def sample_tokens(scenes: list[Scene], spec: GridSpec, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Clean tokens (B, N, 96) of rendered scenes and their positions (N, 3); only the kept frames are rendered."""
    frames, height, width = spec.grid
    kept = torch.from_numpy(np.sort(rng.permutation(frames)[: spec.frames]))
    later = kept[kept > 0]
    # The first frame is always rendered, for analytic_latents expects it, and dropped where it is not kept.
    index = torch.cat([torch.zeros(1, dtype=torch.long), (4 * later[:, None] + torch.arange(-3, 1)).flatten()])
    times = frame_times(4 * (frames - 1) + 1)[index]
    video = torch.stack([render(scene, times, 4 * PATCH * height, 4 * PATCH * width) for scene in scenes])
    latents = normalise(analytic_latents(video))[:, :, len(later) - len(kept) + 1 :]
    places = positions(spec.grid).unflatten(0, (frames, -1))[kept].flatten(0, 1)
    return to_tokens(latents), places
