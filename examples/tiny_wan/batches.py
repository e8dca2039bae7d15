"""What one training step sees: a token grid or some frames of it, captions, noise levels, clean tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from examples.tiny_wan.latents import PATCH, analytic_latents, normalise, positions, to_tokens
from examples.tiny_wan.model import SHIFT
from examples.tiny_wan.scenes import Scene, frame_times, nearness, render, sample_scene


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


def sample_tokens(scenes: list[Scene], spec: GridSpec, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens (B, N, C) of rendered scenes, how near they are to an object (B, N), and their positions (N, 3).

    Only the kept frames are rendered.
    """
    frames, height, width = spec.grid
    kept = torch.from_numpy(np.sort(rng.permutation(frames)[: spec.frames]))
    later = kept[kept > 0]
    # The first frame is always rendered, for analytic_latents expects it, and dropped where it is not kept.
    index = torch.cat([torch.zeros(1, dtype=torch.long), (4 * later[:, None] + torch.arange(-3, 1)).flatten()])
    times = frame_times(4 * (frames - 1) + 1)[index]
    video = torch.stack([render(scene, times, 4 * PATCH * height, 4 * PATCH * width) for scene in scenes])
    latents = normalise(analytic_latents(video))[:, :, len(later) - len(kept) + 1 :]
    near = torch.stack([nearness(scene, times, height, width) for scene in scenes])
    near = torch.cat([near[:, :1], near[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)[:, len(later) - len(kept) + 1 :]
    places = positions(spec.grid).unflatten(0, (frames, -1))[kept].flatten(0, 1)
    return to_tokens(latents), near.flatten(1), places


@dataclass(frozen=True)
class Batch:
    """Clean `tokens` (B, N, C) at `places` (N, 3), their captions and noise levels `sigma` (B,).

    `near` (B, N) is 1 around the objects and 0 elsewhere.
    """

    spec: GridSpec
    captions: list[str]
    tokens: Tensor
    near: Tensor
    places: Tensor
    sigma: Tensor


def sample_batch(spec: GridSpec, rng: np.random.Generator) -> Batch:
    """Fresh scenes; one caption in ten is dropped, so that the model learns to do without."""
    scenes = [sample_scene(rng) for _ in range(spec.batch)]
    wordings = rng.choice(3, spec.batch, p=(0.5, 0.3, 0.2)).tolist()
    dropped = rng.random(spec.batch) < 0.1
    captions = ["" if d else s.caption(w) for s, w, d in zip(scenes, wordings, dropped, strict=True)]
    return Batch(spec, captions, *sample_tokens(scenes, spec, rng), sample_sigmas(rng, spec.batch))


class Clips(IterableDataset):
    """An endless stream of batches of the given grids, drawn by their weights."""

    def __init__(self, specs: list[GridSpec], seed: int) -> None:
        self.specs, self.seed = specs, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        weights = np.array([spec.weight for spec in self.specs])
        while True:
            yield sample_batch(self.specs[rng.choice(len(weights), p=weights / weights.sum())], rng)


def load_batches(specs: list[GridSpec], seed: int, workers: int) -> DataLoader:
    """Batches rendered in `workers` processes of one thread each, in an order that only `seed` decides."""
    return DataLoader(Clips(specs, seed), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
