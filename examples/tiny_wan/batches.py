"""What one training step sees: a token grid or some frames of it, captions, noise levels, clean latents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.tiny_wan.latents import PATCH, normalise
from examples.tiny_wan.model import SHIFT
from examples.tiny_wan.rendering import latents_of_rows, nearness_rows, scene_rows
from examples.tiny_wan.sampling import sample_scene
from examples.tiny_wan.scenes import frame_times
from examples.tiny_wan.text import token_ids

Device = torch.device | str
HIGH = 0.3  # share of the noise levels between 0.85 and 1


@dataclass(frozen=True)
class GridSpec:
    """`TxHxW[/n]:weight:batch`: a token grid, how many of its frames are kept, its odds and its batch size."""

    grid: tuple[int, int, int]
    frames: int
    weight: float
    batch: int

    @property
    def name(self) -> str:
        """For logs: 9x8x8/2."""
        return f"{'x'.join(map(str, self.grid))}/{self.frames}"

    @classmethod
    def parse(cls, text: str) -> "GridSpec":
        """Read the command-line form, for example 9x8x8/2:1:8."""
        shape, weight, batch = text.split(":")
        grid, _, kept = shape.partition("/")
        frames, height, width = map(int, grid.split("x"))
        return cls((frames, height, width), int(kept or frames), float(weight), int(batch))


@dataclass(frozen=True)
class Batch:
    """Clean `latents` (B, C, T, H, W) of the frames `kept`, captions as `words` (B, 28), and noise levels (B,).

    `near` (B, N) is 1 around the objects and 0 elsewhere.
    """

    spec: GridSpec
    kept: tuple[int, ...]
    words: Tensor
    sigma: Tensor
    latents: Tensor
    near: Tensor


def sample_sigmas(rng: np.random.Generator, count: int) -> Tensor:
    """(count,) noise levels, stratified: a share `HIGH` between 0.85 and 1, the rest under the scheduler's shift.

    Of that rest 11 in 14 are logit-normal, the others uniform. Where an object goes is settled between 0.85 and 1, and
    takes longest to learn.
    """
    strata = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count)
    normal = torch.sigmoid(torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)))
    kind = torch.from_numpy(rng.random(count)) / (1 - HIGH)
    base = torch.where(kind < 11 / 14, normal, strata)
    shifted = SHIFT * base / (1 + (SHIFT - 1) * base)
    return torch.where(kind < 1, shifted, 0.85 + 0.15 * strata).float()


def equally_noisy(sigma: Tensor, spec: GridSpec) -> Tensor:
    """Levels that hide on this grid what `sigma` hides on 16 x 16 tokens: noise averages out over more of them.

    Signal to noise (1 - sigma) / sigma is taken times the ratio of the sides, as in Stable Diffusion 3
    (arXiv 2403.03206, section 5.3.2).
    """
    ratio = 16 / math.sqrt(spec.grid[1] * spec.grid[2])
    return sigma / (sigma + ratio * (1 - sigma))


def clean_latents(rows: Tensor, spec: GridSpec, kept: tuple[int, ...], device: Device) -> tuple[Tensor, Tensor]:
    """Latents (B, C, T, H, W) of the frames `kept` of scenes, and how near each token is to an object, (B, N).

    Only the kept frames are rendered, on `device`.
    """
    frames, height, width = spec.grid
    later = [frame for frame in kept if frame]
    # The first frame is always rendered, for analytic_latents expects it, and dropped where it is not kept.
    index = [0, *(4 * frame + offset for frame in later for offset in range(-3, 1))]
    times = frame_times(4 * (frames - 1) + 1)[index].to(device)
    dropped = len(later) - len(kept) + 1
    near = nearness_rows(rows, times, height, width)
    near = torch.cat([near[:, :1], near[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)
    latents = latents_of_rows(rows, times, 4 * PATCH * height, 4 * PATCH * width)
    return normalise(latents)[:, :, dropped:], near[:, dropped:].flatten(1)


def sample_batch(
    spec: GridSpec, rng: np.random.Generator, device: Device = "cpu", pairs: float = 0.5, empty: float = 0.1
) -> Batch:
    """Fresh scenes, a share `pairs` of two objects and a share `empty` without a caption, which guidance needs."""
    counts = 1 + (rng.random(spec.batch) < pairs)
    scenes = [sample_scene(rng, objects=count) for count in counts.tolist()]
    scenes.sort(key=lambda scene: (len(scene.items), scene.items[0].shape))  # like next to like renders faster
    wordings = rng.choice(3, spec.batch, p=(0.5, 0.3, 0.2)).tolist()
    dropped = rng.random(spec.batch) < empty
    captions = ["" if d else s.caption(w) for s, w, d in zip(scenes, wordings, dropped, strict=True)]
    kept = tuple(np.sort(rng.permutation(spec.grid[0])[: spec.frames]).tolist())
    sigma = equally_noisy(sample_sigmas(rng, spec.batch), spec).to(device)
    words = token_ids(captions).to(device)
    return Batch(spec, kept, words, sigma, *clean_latents(scene_rows(scenes), spec, kept, device))


def batches(specs: list[GridSpec], seed: int, device: Device = "cpu", **options) -> Iterator[Batch]:
    """An endless stream of batches of the given grids, drawn by their weights; options are those of `sample_batch`."""
    rng = np.random.default_rng(seed)
    weights = np.array([spec.weight for spec in specs])
    while True:
        yield sample_batch(specs[rng.choice(len(specs), p=weights / weights.sum())], rng, device, **options)
