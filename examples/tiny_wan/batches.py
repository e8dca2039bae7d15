"""What one training step sees: a token grid or some frames of it, captions, noise levels, clean tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from examples.tiny_wan.latents import PATCH, normalise, to_tokens
from examples.tiny_wan.model import SHIFT
from examples.tiny_wan.sampling import combination_odds, sample_scene
from examples.tiny_wan.scene_batch import latents_of_rows, nearness_rows, scene_rows
from examples.tiny_wan.scenes import Scene, frame_times
from examples.tiny_wan.text import phrase_marks, token_ids

Device = torch.device | str


@dataclass(frozen=True)
class GridSpec:
    """`TxHxW[@w][/n]:weight:batch`: a token grid, the side of a window, how many frames are kept, odds, batch size."""

    grid: tuple[int, int, int]
    frames: int
    weight: float
    batch: int
    window: int | None = None

    @property
    def name(self) -> str:
        """For logs: 9x8x8/2."""
        window = f"@{self.window}" if self.window else ""
        return f"{'x'.join(map(str, self.grid))}{window}/{self.frames}"

    @classmethod
    def parse(cls, text: str) -> "GridSpec":
        """Read the command-line form, for example 9x8x8/2:1:8 or 9x16x16@8:1:24."""
        shape, weight, batch = text.split(":")
        shape, _, kept = shape.partition("/")
        grid, _, window = shape.partition("@")
        frames, height, width = map(int, grid.split("x"))
        if window and not 0 < int(window) <= min(height, width):
            raise ValueError(
                f"a window of {window} tokens does not fit the grid {grid}: take 1 to {min(height, width)}"
            )
        return cls((frames, height, width), int(kept or frames), float(weight), int(batch), int(window or 0) or None)


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


def sample_frames(spec: GridSpec, rng: np.random.Generator) -> tuple[int, ...]:
    """Which frames of the grid are kept, in their order."""
    return tuple(np.sort(rng.permutation(spec.grid[0])[: spec.frames]).tolist())


def sample_corners(spec: GridSpec, scenes: list[Scene], rng: np.random.Generator) -> Tensor:
    """(B, 2) row and column of the first token of each scene's window, around where its first object once is."""
    sides = np.array(spec.grid[1:])
    if spec.window is None:
        return torch.zeros(len(scenes), 2, dtype=torch.long)
    moments = torch.from_numpy(rng.random(len(scenes)))
    places = [scene.items[0].at(moment, scene.pan)[:2] for scene, moment in zip(scenes, moments, strict=True)]
    centres = np.array([[float(y), float(x)] for x, y in places]) * sides + rng.uniform(-1, 1, (len(scenes), 2))
    corners = np.round(centres - spec.window / 2).clip(0, sides - spec.window)
    return torch.from_numpy(corners).long()


def _windows(tokens: Tensor, spec: GridSpec, corners: Tensor) -> Tensor:
    """Those of (B, T, H * W, C) in each clip's window: (B, T * w * w, C)."""
    if spec.window is None:
        return tokens.flatten(1, 2)
    row, column = ((corners[:, axis, None] + torch.arange(spec.window)) for axis in (0, 1))
    index = (row.unsqueeze(2) * spec.grid[2] + column.unsqueeze(1)).flatten(1).to(tokens.device)
    clip = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
    return tokens[clip, :, index].transpose(1, 2).flatten(1, 2)


def clean_tokens(
    rows: Tensor, spec: GridSpec, kept: tuple[int, ...], device: Device, corners: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Clean tokens (B, N, C) of scenes rendered on `device`, and how near they are to each object (B, 2, N).

    Only the kept frames are rendered; of them, only the windows at `corners` are returned.
    """
    frames, height, width = spec.grid
    later = [frame for frame in kept if frame]
    # The first frame is always rendered, for analytic_latents expects it, and dropped where it is not kept.
    index = [0, *(4 * frame + offset for frame in later for offset in range(-3, 1))]
    times = frame_times(4 * (frames - 1) + 1)[index].to(device, non_blocking=True)
    skip = len(later) - len(kept) + 1
    latents = normalise(latents_of_rows(rows, times, 4 * PATCH * height, 4 * PATCH * width))[:, :, skip:]
    near = nearness_rows(rows, times, height, width)
    near = torch.cat([near[:, :, :1], near[:, :, 1:].unflatten(2, (-1, 4)).mean(3)], 2)[:, :, skip:]
    tokens = to_tokens(latents).unflatten(1, (len(kept), -1))
    near = near.flatten(3).permute(0, 2, 3, 1)
    return _windows(tokens, spec, corners), _windows(near, spec, corners).transpose(1, 2)


@dataclass(frozen=True)
class Batch:
    """Clean `tokens` (B, N, C) of the frames `kept`, their captions, as `words` (B, 28) too, and noise levels (B,).

    `near` (B, 2, N) is 1 around each object and 0 elsewhere; `phrases` (B, 28, 2) are the `phrase_marks`.
    """

    spec: GridSpec
    captions: list[str]
    words: Tensor
    phrases: Tensor
    kept: tuple[int, ...]
    sigma: Tensor
    tokens: Tensor
    near: Tensor


@dataclass(frozen=True)
class Draft:
    """A batch whose scenes are rows of numbers (B, 36), still to be rendered, and cut at `corners` (B, 2)."""

    spec: GridSpec
    captions: list[str]
    words: Tensor
    phrases: Tensor
    kept: tuple[int, ...]
    sigma: Tensor
    rows: Tensor
    corners: Tensor

    def pin_memory(self) -> "Draft":
        """The same in memory that copies to a device without the host waiting."""
        parts = {name: getattr(self, name).pin_memory() for name in ("words", "phrases", "sigma", "rows", "corners")}
        return replace(self, **parts)

    def rendered(self, device: Device = "cpu") -> Batch:
        """The batch on `device`."""
        words, phrases, sigma = (part.to(device, non_blocking=True) for part in (self.words, self.phrases, self.sigma))
        tokens, near = clean_tokens(self.rows, self.spec, self.kept, device, self.corners)
        return Batch(self.spec, self.captions, words, phrases, self.kept, sigma, tokens, near)


def sample_draft(
    spec: GridSpec, rng: np.random.Generator, held_out: bool = False, odds: np.ndarray | None = None
) -> Draft:
    """Fresh scenes; one caption in ten is dropped, so that the model learns to do without.

    Windows show one object, and so do their captions.
    """
    objects = 1 if spec.window else None
    scenes = [sample_scene(rng, objects=objects, held_out=held_out, odds=odds) for _ in range(spec.batch)]
    scenes.sort(key=lambda scene: (len(scene.items), scene.items[0].shape))  # like next to like renders faster
    wordings = rng.choice(3, spec.batch, p=(0.5, 0.3, 0.2)).tolist()
    dropped = rng.random(spec.batch) < 0.1
    captions = ["" if d else s.caption(w) for s, w, d in zip(scenes, wordings, dropped, strict=True)]
    phrases = phrase_marks(scenes, wordings) * torch.from_numpy(~dropped)[:, None, None]
    kept, sigma = sample_frames(spec, rng), sample_sigmas(rng, spec.batch)
    corners = sample_corners(spec, scenes, rng)
    return Draft(spec, captions, token_ids(captions), phrases, kept, sigma, scene_rows(scenes), corners)


class Clips(IterableDataset):
    """An endless stream of batches of the given grids, drawn by their weights, rendered or not."""

    def __init__(self, specs: list[GridSpec], seed: int, render: bool, often: Mapping[str, float]) -> None:
        self.specs, self.seed, self.render = specs, seed, render
        self.odds = combination_odds(often)

    def __iter__(self) -> Iterator[Batch | Draft]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        weights = np.array([spec.weight for spec in self.specs])
        while True:
            spec = self.specs[rng.choice(len(weights), p=weights / weights.sum())]
            draft = sample_draft(spec, rng, odds=self.odds)
            yield draft.rendered() if self.render else draft


def load_batches(
    specs: list[GridSpec], seed: int, workers: int, device: Device = "cpu", often: Mapping[str, float] | None = None
) -> Iterator[Batch]:
    """Batches on `device`, drawn in `workers` processes of one thread each, in an order that only `seed` decides.

    Those processes also render for a CPU; any other device renders for itself.
    """
    on_cpu = torch.device(device).type == "cpu"
    ahead = {"prefetch_factor": 4} if workers else {}
    loader = DataLoader(
        Clips(specs, seed, on_cpu, often or {}), None, num_workers=workers, pin_memory=not on_cpu, **ahead
    )
    for batch in loader:
        yield batch if on_cpu else batch.rendered(device)
