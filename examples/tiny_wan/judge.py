"""Read background, object colour, shape and motion off a clip's frames, without a model and without a human."""

import math

import numpy as np
import torch
from torch import Tensor

from examples.tiny_wan.scenes import COLOURS, MOTIONS, SHAPES, Scene, outline_distance

CHOICES = {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS, "background": COLOURS}
# Area over radius squared, and how far the centre of mass lies below the middle of the outline, in radii.
UNIT = {"circle": (math.pi, 0.0), "square": (4 * 0.89**2, 0.0), "triangle": (3 * 3**0.5 * 0.74**2, 0.37)}
STILL_BELOW = 0.10  # travel, as a fraction of the side, below which an object rests


def _nearest_colour(rgb: Tensor) -> str:
    palette = torch.tensor(list(COLOURS.values()))
    return list(COLOURS)[int((palette - rgb).square().sum(1).argmin())]


def _fit_background(clip: Tensor, keep: Tensor) -> Tensor:
    """Per-channel affine surface through the pixels `keep` (T, H, W) of (T, 3, H, W): returns (3, H, W)."""
    _, _, height, width = clip.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], -1)
    count = keep.sum(0).float()
    mean = (clip * keep[:, None]).sum(0) / count.clamp(min=1)
    weight = count.sqrt().flatten()[:, None]
    solution = torch.linalg.lstsq(basis.flatten(0, 1) * weight, mean.flatten(1).T * weight).solution
    return (basis @ solution).permute(2, 0, 1)


def segment(clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(T, 3, H, W) -> object mask (T, H, W), its sure core (T, H, W) and the background surface (3, H, W).

    The object is what departs from an affine surface fitted to the rim, then to all that is not object.
    """
    frames, _, height, width = clip.shape
    keep = torch.ones(frames, height, width, dtype=torch.bool)
    edge = max(height // 16, 1)
    keep[:, edge:-edge, edge:-edge] = False
    for _ in range(3):
        background = _fit_background(clip, keep)
        distance = (clip - background).norm(dim=1)
        strongest = max(float(distance.flatten().quantile(0.97)), 0.7)
        # A blurred edge is cut in its middle.
        mask = distance > 0.5 * strongest
        keep = ~mask
    return mask, distance > 0.75 * strongest, background


def _track(mask: Tensor) -> Tensor:
    """Centre of mass (n, 2) as (x, y) fractions of the frames that show anything."""
    seen = mask[mask.flatten(1).sum(1) > 0].float()
    area = seen.sum((1, 2))
    y = (seen.sum(2) * (torch.arange(mask.shape[1]) + 0.5)).sum(1) / area / mask.shape[1]
    x = (seen.sum(1) * (torch.arange(mask.shape[2]) + 0.5)).sum(1) / area / mask.shape[2]
    return torch.stack([x, y], 1)


def _motion(mask: Tensor) -> str:
    """Direction of the centre's least-squares line over time; its whole travel decides between still and moving."""
    track = _track(mask)
    if len(track) < 3:
        return "none"
    time = torch.linspace(-0.5, 0.5, len(track))
    travel = ((track - track.mean(0)) * time[:, None]).sum(0) / time.square().sum()
    if float(travel.abs().max()) < STILL_BELOW:
        return "still"
    return max(MOTIONS, key=lambda name: float(travel @ torch.tensor(MOTIONS[name])))


def _shape(mask: Tensor) -> str:
    """The ideal shape of each frame's own area and centre that overlaps best, on average over frames."""
    _, height, width = mask.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    scores = dict.fromkeys(SHAPES, 0.0)
    for frame, (cx, cy) in zip(mask[mask.flatten(1).sum(1) > 0], _track(mask), strict=True):
        area = float(frame.sum())
        for shape, (unit_area, drop) in UNIT.items():
            radius = (area / unit_area) ** 0.5
            ideal = outline_distance(shape, x - cx * width, y - cy * height + drop * radius, radius) < 0
            scores[shape] += float((ideal & frame).sum() / (ideal | frame).sum())
    return max(scores, key=scores.__getitem__)


def judge(clip: Tensor) -> dict[str, str]:
    """The four attributes of a clip (T, 3, H, W) in [-1, 1]; "none" where there is no object to judge."""
    clip = clip[:: max(1, len(clip) // 8)].float()
    mask, core, background = segment(clip)
    verdict = {"background": _nearest_colour(background.mean((1, 2)))}
    if mask.float().mean() < 0.01:
        return verdict | dict.fromkeys(("shape", "colour", "motion"), "none")
    colour = clip.permute(0, 2, 3, 1)[core].median(0).values
    return verdict | {"shape": _shape(mask), "colour": _nearest_colour(colour), "motion": _motion(mask)}


def score(verdicts: list[dict[str, str]], scenes: list[Scene]) -> dict[str, float]:
    """Accuracy per attribute and of all four at once."""
    hits = [[v[name] == getattr(s, name) for name in CHOICES] for v, s in zip(verdicts, scenes, strict=True)]
    table = dict(zip(CHOICES, np.mean(hits, 0).tolist(), strict=True))
    return table | {"all four": float(np.mean(np.all(hits, 1)))}
