"""Scenes as rows of numbers, rendered many at a time on any device: what `scenes.render` draws one by one."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.scenes import COLOURS, HOPS, PAN_TRAVEL, PANS, SHAPES, Scene, outline_distance

OBJECTS = 2
# Of the ground: colour (3), gradient (2), wave (4), pan (1). Of an object: shape (1), colour (3), `Item.course` (8).
GROUND, OBJECT = 10, 12
ABSENT = (-1.0, 0.0, 0.0, 0.0, -9.0, *(0.0,) * 7)  # no shape, far outside
CHUNK = 2**24  # pixels rendered at a time on an accelerator: a few of its tensors take less than 3 GB
NEAR = 1.5  # how far around its centre an object is near, in its radii


def scene_rows(scenes: list[Scene]) -> Tensor:
    """(B, 34) float32: one row of numbers for each scene of up to two objects."""
    rows = []
    for scene in scenes:
        row = [*COLOURS[scene.background], *scene.gradient, *scene.wave, PANS[scene.pan] * PAN_TRAVEL]
        for item in (*scene.items, None, None)[:OBJECTS]:
            row += (SHAPES.index(item.shape), *COLOURS[item.colour], *item.course(scene.pan)) if item else ABSENT
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).view(-1, GROUND + OBJECTS * OBJECT)


def _objects(rows: Tensor, there: Tensor) -> Iterator[tuple[int, list[int], Tensor]]:
    """Each place for an object that is taken in any row, the shapes there, and its columns of the copy `there`.

    The host looks, for it would have to wait for a device to tell.
    """
    for place in range(OBJECTS):
        columns = slice(GROUND + place * OBJECT, GROUND + (place + 1) * OBJECT)
        shapes = [int(shape) for shape in rows[:, columns.start].unique().tolist() if shape >= 0]
        if shapes:
            yield place, shapes, there[:, columns]


def _centres(extent: int, device: torch.device) -> Tensor:
    return (torch.arange(extent, device=device) + 0.5) / extent


def _ground(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """(B, T, 3, H, W): the colours, shaded."""
    columns = rows.view(-1, rows.shape[1], 1, 1, 1).unbind(1)
    tilt_x, tilt_y, amplitude, fx, fy, phase, pan = columns[3:GROUND]
    x, y = _centres(width, times.device), _centres(height, times.device).view(-1, 1)
    # The sine of a sum of what depends on the column and on the row alone: no sine of single pixels.
    across = 2 * math.pi * (fx * (x + pan * times.view(-1, 1, 1)) + phase)
    down = 2 * math.pi * fy * y
    shade = tilt_x * (2 * x - 1) + tilt_y * (2 * y - 1)
    shade = shade + amplitude * across.sin() * down.cos() + amplitude * across.cos() * down.sin()
    return (torch.stack(columns[:3], 2) + shade.unsqueeze(2)).clamp(-1, 1)


def _cover(shapes: list[int], columns: Tensor, times: Tensor, height: int, width: int, scale: float = 1.0) -> Tensor:
    """(B, T, H, W): how much of each pixel an object covers; `scale` multiplies its radius."""
    shape, _, _, _, x, y, dx, dy, hop, radius, growth, turn = columns.view(-1, OBJECT, 1, 1, 1).unbind(1)
    time = times.view(-1, 1, 1)
    right = _centres(width, times.device) - (x + dx * time)
    below = _centres(height, times.device).view(-1, 1) - (y + dy * time - hop * (HOPS * math.pi * time).sin().abs())
    radius, turned = scale * (radius + growth * time), turn * time
    cos, sin = turned.cos(), turned.sin()
    distance = None
    for index in shapes:
        turns = SHAPES[index] != "circle"
        arms = (right * cos + below * sin, below * cos - right * sin) if turns else (right, below)
        this = outline_distance(SHAPES[index], *arms, radius)
        distance = this if distance is None else torch.where(shape == index, this, distance)
    return (0.5 - min(height, width) * distance).clamp(0, 1)


def render_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """Scenes (B, 34), in the memory of the host, at `times` (T,): (B, T, 3, H, W) on the device of `times`."""
    there = rows.to(times.device, non_blocking=True)
    # Where no camera pans, one frame of the ground does for all.
    clips = _ground(there, times if rows[:, GROUND - 1].any() else times[:1], height, width)
    clips = clips.expand(-1, len(times), -1, -1, -1)
    for _, shapes, columns in _objects(rows, there):
        colour = columns[:, 1:4].reshape(-1, 1, 3, 1, 1)
        clips = torch.lerp(clips, colour, _cover(shapes, columns, times, height, width).unsqueeze(2))
    return clips


def nearness_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, T, height, width): 1 around each object, whatever its shape, 0 elsewhere."""
    near = torch.zeros(len(rows), OBJECTS, len(times), height, width, device=times.device)
    for place, _, columns in _objects(rows, rows.to(times.device, non_blocking=True)):
        near[:, place] = _cover([SHAPES.index("circle")], columns, times, height, width, NEAR)
    return near


def masks_of_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, T, height, width): how much of each pixel shows each object; the second hides the first."""
    masks = torch.zeros(len(rows), OBJECTS, len(times), height, width, device=times.device)
    for place, shapes, columns in _objects(rows, rows.to(times.device, non_blocking=True)):
        masks[:, place] = _cover(shapes, columns, times, height, width)
    masks[:, 0] *= 1 - masks[:, 1]
    return masks


def latents_of_rows(rows: Tensor, times: Tensor, height: int, width: int) -> Tensor:
    """Unnormalised latents (B, 6, n, H/4, W/4) of rendered scenes, a few scenes at a time."""
    size = max(CHUNK // (len(times) * height * width), 1) if times.is_cuda else 1
    return torch.cat([analytic_latents(render_rows(part, times, height, width)) for part in rows.split(size)])
