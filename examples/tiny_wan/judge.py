"""Read the background and every object's colour, shape and motion off a clip's frames, without a model or a human."""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.tiny_wan.scenes import COLOURS, DIRECTIONS, MOTIONS, PAN_TRAVEL, PANS, SHAPES, Scene

ATTRIBUTES = ("shape", "colour", "motion", "background", "count")
CHANCE = {
    "shape": 1 / len(SHAPES),
    "colour": 1 / len(COLOURS),
    "motion": 1 / len(MOTIONS),
    "background": 1 / len(COLOURS),
}
OBJECT_ABOVE = 0.65  # distance in RGB, beyond the stripes and well within the nearest two colours
STILL_BELOW = 0.10  # travel, as a fraction of the side, below which an object rests
GROWS_ABOVE = 1.8  # ratio of areas, last third over first
SPINS_ABOVE = math.radians(50)
# |mean z^3| / mean |z|^3 and |mean z^4| / mean |z|^4 of each shape's area, z the complex offset from its centre.
MOMENTS = {"circle": (0.0, 0.0), "square": (0.0, 0.43), "triangle": (0.66, 0.0)}


def _nearest(pixels: Tensor, names: list[str]) -> Tensor:
    """Index of the nearest named colour for (..., 3)."""
    palette = torch.tensor([COLOURS[name] for name in names])
    return (pixels.unsqueeze(-2) - palette).square().sum(-1).argmin(-1)


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


def _ground(clip: Tensor) -> tuple[Tensor, Tensor]:
    """(T, 3, H, W) -> background surface (3, H, W) and every pixel's distance from it (T, H, W).

    The surface is affine, fitted to the rim, then to all that is not object.
    """
    frames, _, height, width = clip.shape
    keep = torch.ones(frames, height, width, dtype=torch.bool)
    edge = max(height // 16, 1)
    keep[:, edge:-edge, edge:-edge] = False
    for _ in range(3):
        surface = _fit_background(clip, keep).clamp(-1, 1)
        distance = (clip - surface).norm(dim=1)
        keep = distance < OBJECT_ABOVE
    return surface, distance


def segment(clip: Tensor) -> tuple[str, dict[str, Tensor]]:
    """(T, 3, H, W) -> the background's colour and a mask (T, H, W) for each object, by colour.

    Objects are the colours that fill enough of what departs from the background; each pixel goes to the nearest
    of them and the background, so that blurred edges are cut in their middle.
    """
    surface, distance = _ground(clip)
    background = list(COLOURS)[int(_nearest(surface.mean((1, 2)), list(COLOURS)))]
    names, pixels = [name for name in COLOURS if name != background], clip.permute(0, 2, 3, 1)
    core = distance > max(OBJECT_ABOVE, min(1.0, 0.7 * float(distance.flatten().quantile(0.98))))
    counts = torch.bincount(_nearest(pixels[core], names), minlength=len(names))
    floor = max(0.12 * float(counts.sum()), 0.006 * distance.numel())
    found = [name for name, count in zip(names, counts.tolist(), strict=True) if count > floor]
    apart = [(pixels - torch.tensor(COLOURS[name])).norm(dim=-1) for name in found]
    owner = torch.stack([*apart, distance]).argmin(0)
    return background, {name: _without_rims(owner == index) for index, name in enumerate(found)}


def _without_rims(mask: Tensor) -> Tensor:
    """Drop what is only a few pixels wide: another object's blurred edge may look like this one's colour."""
    radius = max(mask.shape[-1] // 64, 1)
    eroded = -F.max_pool2d(-mask.float(), 2 * radius + 1, 1, radius)
    return mask & (F.max_pool2d(eroded, 2 * radius + 3, 1, radius + 1) > 0)


def _offsets(frame: Tensor) -> Tensor:
    """Complex offsets (n,) from their centre, in fractions of the side, of the pixels of a mask (H, W)."""
    y, x = frame.nonzero().double().T
    return torch.complex(x / frame.shape[1], y / frame.shape[0])


def _shape(offsets: list[Tensor]) -> str:
    """The shape whose third and fourth moments lie nearest to the median over the frames."""
    found = torch.tensor([[float((z**n).mean().abs() / (z.abs() ** n).mean()) for n in (3, 4)] for z in offsets])
    third, fourth = found.median(0).values.tolist()
    return min(SHAPES, key=lambda name: math.hypot(third - MOMENTS[name][0], fourth - MOMENTS[name][1]))


def _turned(offsets: list[Tensor], shape: str) -> float:
    """By how much, in radians, an object has turned over the clip; 0 for circles."""
    if shape == "circle":
        return 0.0
    fold = 4 if shape == "square" else 3
    return float(np.ptp(np.unwrap([float((z**fold).mean().angle()) for z in offsets]))) / fold


def _motion(track: Tensor, areas: Tensor, turned: float) -> str:
    """A motion from the centres (n, 2), the areas (n,) and the turn."""
    time = torch.linspace(-0.5, 0.5, len(track), dtype=track.dtype)
    travel = ((track - track.mean(0)) * time[:, None]).sum(0) / time.square().sum()
    third = max(len(areas) // 3, 1)
    hop = float(track[:, 1].max() - track[:, 1].min())
    if areas[-third:].mean() / areas[:third].mean() > GROWS_ABOVE:
        return "grow"
    if hop > 1.5 * STILL_BELOW and float(travel[1].abs()) < 0.5 * hop:
        return "bounce"
    if float(travel.abs().max()) > STILL_BELOW:
        return max(DIRECTIONS, key=lambda name: float(travel @ torch.tensor(DIRECTIONS[name]).double()))
    return "spin" if turned > SPINS_ABOVE else "still"


def _item(colour: str, mask: Tensor, pan: str) -> dict[str, str]:
    """One object's verdict from its mask (T, H, W); motion is judged in front of a camera that pans as told."""
    seen = mask.flatten(1).sum(1) > 0.2 * mask.flatten(1).sum(1).float().mean()
    points = [_offsets(frame) for frame in mask[seen]]
    if len(points) < 3:
        return {"colour": colour, "shape": "none", "motion": "none"}
    centres = torch.stack([z.mean() for z in points])
    offsets = [z - centre for z, centre in zip(points, centres, strict=True)]
    time = torch.linspace(0, 1, len(mask))[seen]
    track = torch.stack([centres.real + PANS[pan] * PAN_TRAVEL * time, centres.imag], 1)
    areas = torch.tensor([float(len(z)) for z in points])
    shape = _shape(offsets)
    return {"colour": colour, "shape": shape, "motion": _motion(track, areas, _turned(offsets, shape))}


def judge(clip: Tensor, pan: str = "") -> dict:
    """What a clip (T, 3, H, W) in [-1, 1] shows: {"background": name, "items": [{"colour", "shape", "motion"}]}.

    It looks at 8 to 15 of the frames, evenly spaced.
    """
    background, found = segment(clip[:: max(1, len(clip) // 8)].float())
    return {"background": background, "items": [_item(colour, part, pan) for colour, part in found.items()]}


def hits(verdict: Mapping, scene: Scene) -> dict[str, float]:
    """Share of right answers per attribute, over the scene's objects, and whether all of it is right."""
    found = {item["colour"]: item for item in verdict["items"]}
    wanted = {item.colour: item for item in scene.items}
    strays = [item for colour, item in found.items() if colour not in wanted]
    table = dict.fromkeys(ATTRIBUTES, 0.0)
    for colour, item in wanted.items():
        # An object of a wrong colour can still have the right shape and motion.
        match = found.get(colour) or (strays.pop() if strays else {})
        for name in ("shape", "colour", "motion"):
            table[name] += (match.get(name) == getattr(item, name)) / len(wanted)
    table["background"] = float(verdict["background"] == scene.background)
    table["count"] = float(len(found) == len(wanted))
    return table | {"all": float(all(value == 1 for value in table.values()))}
