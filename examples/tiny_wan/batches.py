"""What one training step sees: a token grid or some frames of it, captions, noise levels, clean tokens."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from examples.tiny_wan.latents import PATCH, normalise, to_tokens
from examples.tiny_wan.model import SHIFT
from examples.tiny_wan.sampling import combination_odds, sample_scene
from examples.tiny_wan.scene_batch import latents_of_rows, masks_of_rows, nearness_rows, scene_rows
from examples.tiny_wan.scenes import frame_times
from examples.tiny_wan.text import phrase_marks, token_ids

Device = torch.device | str


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


def sample_sigmas(rng: np.random.Generator, count: int, high: float = 0.3) -> Tensor:
    """(count,) noise levels, stratified: a share `high` between 0.85 and 1, the rest under the scheduler's shift.

    Of that rest 11 in 14 are logit-normal, the others uniform. Where an object goes is settled between 0.85 and 1, and
    takes longest to learn.
    """
    strata = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count)
    normal = torch.sigmoid(torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)))
    kind = torch.from_numpy(rng.random(count)) / (1 - high)
    base = torch.where(kind < 11 / 14, normal, strata)
    shifted = SHIFT * base / (1 + (SHIFT - 1) * base)
    return torch.where(kind < 1, shifted, 0.85 + 0.15 * strata).float()


def as_noisy(sigma: Tensor, spec: GridSpec) -> Tensor:
    """Levels that hide on this grid what `sigma` hides on 16 x 16 tokens: noise averages out over more of them.

    Signal to noise (1 - sigma) / sigma is taken times the ratio of the sides, as in Stable Diffusion 3
    (arXiv 2403.03206, section 5.3.2).
    """
    ratio = 16 / math.sqrt(spec.grid[1] * spec.grid[2])
    return sigma / (sigma + ratio * (1 - sigma))


def sample_frames(spec: GridSpec, rng: np.random.Generator) -> tuple[int, ...]:
    """Which frames of the grid are kept, in their order."""
    return tuple(np.sort(rng.permutation(spec.grid[0])[: spec.frames]).tolist())


def clean_tokens(rows: Tensor, spec: GridSpec, kept: tuple[int, ...], device: Device) -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens (B, N, C) of scenes rendered on `device`, how near they are to each object (B, 2, N), and masks.

    Those are the share of each of a token's latent pixels that shows each object, (B, N, 2 P P). Only the kept frames
    are rendered.
    """
    frames, height, width = spec.grid
    later = [frame for frame in kept if frame]
    # The first frame is always rendered, for analytic_latents expects it, and dropped where it is not kept.
    index = [0, *(4 * frame + offset for frame in later for offset in range(-3, 1))]
    times = frame_times(4 * (frames - 1) + 1)[index].to(device, non_blocking=True)
    skip = len(later) - len(kept) + 1
    latents = normalise(latents_of_rows(rows, times, 4 * PATCH * height, 4 * PATCH * width))[:, :, skip:]
    near = _of_chunks(nearness_rows(rows, times, height, width))[:, :, skip:]
    masks = _of_chunks(masks_of_rows(rows, times, PATCH * height, PATCH * width))[:, :, skip:]
    return to_tokens(latents), near.flatten(2), to_tokens(masks)


def _of_chunks(frames: Tensor) -> Tensor:
    """(B, C, 1 + 4n, H, W) -> (B, C, 1 + n, H, W): the first frame and means of four."""
    return torch.cat([frames[:, :, :1], frames[:, :, 1:].unflatten(2, (-1, 4)).mean(3)], 2)


@dataclass(frozen=True)
class Batch:
    """Clean `tokens` (B, N, C) of the frames `kept`, their captions, as `words` (B, 28) too, and noise levels (B,).

    `near` (B, 2, N) is 1 around each object and 0 elsewhere, `masks` (B, N, 8) the share of each of a token's four
    latent pixels that shows each object; `phrases` (B, 28, 2) are the `phrase_marks`.
    """

    spec: GridSpec
    captions: list[str]
    words: Tensor
    phrases: Tensor
    kept: tuple[int, ...]
    sigma: Tensor
    tokens: Tensor
    near: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Draft:
    """A batch whose scenes are rows of numbers (B, 34), still to be rendered."""

    spec: GridSpec
    captions: list[str]
    words: Tensor
    phrases: Tensor
    kept: tuple[int, ...]
    sigma: Tensor
    rows: Tensor

    def pin_memory(self) -> "Draft":
        """The same in memory that copies to a device without the host waiting."""
        parts = {name: getattr(self, name).pin_memory() for name in ("words", "phrases", "sigma", "rows")}
        return replace(self, **parts)

    def rendered(self, device: Device = "cpu") -> Batch:
        """The batch on `device`."""
        words, phrases, sigma = (part.to(device, non_blocking=True) for part in (self.words, self.phrases, self.sigma))
        seen = clean_tokens(self.rows, self.spec, self.kept, device)
        return Batch(self.spec, self.captions, words, phrases, self.kept, sigma, *seen)


@dataclass(frozen=True)
class Wishes:
    """What is drawn more often than by default: shapes and motions by word, scenes with two objects, high noise.

    Args:
        often (`Mapping[str, float]`): how many times as often as other words.
        pairs (`float`): share of the scenes with two objects.
        high (`float`): share of the noise levels between 0.85 and 1.
    """

    often: Mapping[str, float] = field(default_factory=dict)
    pairs: float = 0.5
    high: float = 0.3

    @cached_property
    def odds(self) -> np.ndarray:
        """Of all combinations of attributes."""
        return combination_odds(self.often)


def sample_draft(
    spec: GridSpec, rng: np.random.Generator, held_out: bool = False, wishes: Wishes | None = None
) -> Draft:
    """Fresh scenes; one caption in ten is dropped, so that the model learns to do without."""
    wishes = wishes or Wishes()
    odds = None if held_out else wishes.odds
    counts = 1 + (rng.random(spec.batch) < wishes.pairs)
    scenes = [sample_scene(rng, objects=count, held_out=held_out, odds=odds) for count in counts.tolist()]
    scenes.sort(key=lambda scene: (len(scene.items), scene.items[0].shape))  # like next to like renders faster
    wordings = rng.choice(3, spec.batch, p=(0.5, 0.3, 0.2)).tolist()
    dropped = rng.random(spec.batch) < 0.1
    captions = ["" if d else s.caption(w) for s, w, d in zip(scenes, wordings, dropped, strict=True)]
    phrases = phrase_marks(scenes, wordings) * torch.from_numpy(~dropped)[:, None, None]
    kept, sigma = sample_frames(spec, rng), as_noisy(sample_sigmas(rng, spec.batch, wishes.high), spec)
    return Draft(spec, captions, token_ids(captions), phrases, kept, sigma, scene_rows(scenes))


class Clips(IterableDataset):
    """An endless stream of batches of the given grids, drawn by their weights, rendered or not."""

    def __init__(self, specs: list[GridSpec], seed: int, render: bool, wishes: Wishes) -> None:
        self.specs, self.seed, self.render, self.wishes = specs, seed, render, wishes

    def __iter__(self) -> Iterator[Batch | Draft]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        weights = np.array([spec.weight for spec in self.specs])
        while True:
            spec = self.specs[rng.choice(len(weights), p=weights / weights.sum())]
            draft = sample_draft(spec, rng, wishes=self.wishes)
            yield draft.rendered() if self.render else draft


def load_batches(
    specs: list[GridSpec], seed: int, workers: int, device: Device = "cpu", wishes: Wishes | None = None
) -> Iterator[Batch]:
    """Batches on `device`, drawn in `workers` processes of one thread each, in an order that only `seed` decides.

    Those processes also render for a CPU; any other device renders for itself.
    """
    on_cpu = torch.device(device).type == "cpu"
    ahead = {"prefetch_factor": 4} if workers else {}
    loader = DataLoader(
        Clips(specs, seed, on_cpu, wishes or Wishes()), None, num_workers=workers, pin_memory=not on_cpu, **ahead
    )
    for batch in loader:
        yield batch if on_cpu else batch.rendered(device)
