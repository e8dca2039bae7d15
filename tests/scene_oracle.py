"""Scenes drawn one at a time, from their definition: what `rendering` draws many at a time."""

import math
from dataclasses import replace

import torch

from examples.tiny_wan.scenes import COLOURS, HOPS, PAN_TRAVEL, PANS, outline_distance


def place(item, time, pan=""):
    """Centre x and y, radius and angle at `time`, each of its shape."""
    x, y, dx, dy, hop, radius, growth, turn = item.course(pan)
    hops = hop * torch.sin(HOPS * math.pi * time).abs()
    return x + dx * time, y + dy * time - hops, radius + growth * time, turn * time


def _ground(scene, x, y, time):
    """(T | 1, 3, H, W): the named colour, shaded by a linear gradient and a plane wave that a pan shifts."""
    amplitude, fx, fy, phase = scene.wave
    shade = scene.gradient[0] * (2 * x - 1) + scene.gradient[1] * (2 * y - 1)
    seen = x + PANS[scene.pan] * PAN_TRAVEL * time if scene.pan else x
    shade = shade + amplitude * torch.sin(2 * math.pi * (fx * seen + fy * y + phase))
    return (torch.tensor(COLOURS[scene.background]).view(3, 1, 1) + shade.unsqueeze(1)).clamp(-1, 1)


def cover(item, time, x, y, side, pan=""):
    """(T, H, W): how much of each pixel the object covers, 0 to 1."""
    cx, cy, radius, angle = place(item, time, pan)
    dx, dy = x - cx, y - cy
    turned = (dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin())
    return (0.5 - side * outline_distance(item.shape, *turned, radius)).clamp(0, 1)


def nearness(scene, times, height, width):
    """(T, height, width): 1 around the objects, whatever their shape, 0 elsewhere."""
    x = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    y = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    time = times.view(-1, 1, 1)
    discs = (replace(item, shape="circle", radius=1.5 * item.radius) for item in scene.items)
    return torch.stack([cover(disc, time, x, y, min(height, width), scene.pan) for disc in discs]).amax(0)


def render(scene, times, height, width):
    """The scene at `times` (T,) in [0, 1]: (T, 3, height, width) float32 in [-1, 1], anti-aliased."""
    x = ((torch.arange(width) + 0.5) / width).view(1, 1, -1)
    y = ((torch.arange(height) + 0.5) / height).view(1, -1, 1)
    time = times.view(-1, 1, 1)
    clip = _ground(scene, x, y, time).expand(len(times), -1, -1, -1)
    for item in scene.items:
        colour = torch.tensor(COLOURS[item.colour]).view(3, 1, 1)
        clip = torch.lerp(clip, colour, cover(item, time, x, y, min(height, width), scene.pan).unsqueeze(1))
    return clip
