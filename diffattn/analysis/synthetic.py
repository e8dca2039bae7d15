"""Queries, keys and values with the structure of video, to measure methods without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid import TokenGrid

# Correlation lengths in frames, rows and columns, share of noise, and gain of q.k, for each kind of head.
HEADS = (
    ((3.0, 3.0, 3.0), 0.3, 1.7),
    ((1.0, 6.0, 6.0), 0.5, 1.6),
    ((6.0, 2.0, 2.0), 0.3, 1.8),
    ((2.0, 9.0, 9.0), 0.7, 1.2),
)
VALUE_NOISE = 0.3
PERSISTENCE = 0.7
ROPE_BASE = 10000.0


def structured_qkv(
    grid: TokenGrid, heads: int = 4, dim: int = 64, *, batch: int = 1, seed: int = 0, octaves: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Random fields with noise, normed as after an RMS norm, with 3-D rotary embedding.

    Head h has the correlation lengths, noise and gain of `HEADS[h % 4]`: some heads attend to a small neighbourhood
    in space and time, some to everything. Block methods need such structure, which independent noise lacks. One octave
    is a smooth field, which favours methods that average neighbours; each further octave adds a field of half the
    length and `PERSISTENCE` of the amplitude (fractal noise): edges and texture. Text tokens are noise.

    Args:
        grid ([`TokenGrid`]): S tokens.
        heads (`int`, *optional*, defaults to 4): H.
        dim (`int`, *optional*, defaults to 64): D, even.
        batch (`int`, *optional*, defaults to 1): B independent samples.
        seed (`int`, *optional*, defaults to 0): the same numbers on every run.
        octaves (`int`, *optional*, defaults to 1): roughness of the fields, those of the values included.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: query, key, value, each `(B, S, H, D)` float32.

    >>> [tuple(x.shape) for x in structured_qkv(TokenGrid(3, 4, 4, text=2), heads=2, dim=16)]
    [(1, 50, 2, 16), (1, 50, 2, 16), (1, 50, 2, 16)]
    """
    generator = torch.Generator().manual_seed(seed)
    made = [
        _head(grid, dim, HEADS[head % len(HEADS)], octaves, generator) for _ in range(batch) for head in range(heads)
    ]
    return tuple(torch.stack(parts).view(batch, heads, grid.tokens, dim).transpose(1, 2) for parts in zip(*made))


def _head(
    grid: TokenGrid, dim: int, kind: tuple, octaves: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    lengths, noise, gain = kind
    content, values = (_fractal(grid, dim, lengths, octaves, generator) for _ in range(2))
    mixing = torch.randn(2, dim, dim, generator=generator) / dim**0.5
    query, key = (content + 0.5 * content @ matrix for matrix in mixing)
    query, key, value = (
        _rms_norm((1 - share) * part + share * torch.randn(part.shape, generator=generator))
        for part, share in ((query, noise), (key, noise), (values, VALUE_NOISE))
    )
    query, key = (rotate(part, grid) * gain**0.5 for part in (query, key))
    return tuple(_with_text(part, grid, generator) for part in (query, key, value))


def _fractal(
    grid: TokenGrid, dim: int, lengths: tuple[float, ...], octaves: int, generator: torch.Generator
) -> Tensor:
    """`(V, dim)` field of unit variance: `octaves` fields, each of half the length of the one before."""
    weights = [PERSISTENCE**octave for octave in range(octaves)]
    total = sum(weight**2 for weight in weights) ** 0.5
    parts = (_field(grid, dim, tuple(x / 2**octave for x in lengths), generator) for octave in range(octaves))
    return sum(weight / total * part for weight, part in zip(weights, parts))


def _field(grid: TokenGrid, dim: int, lengths: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """`(V, dim)` Gaussian field of unit variance, correlated over `lengths` tokens."""
    field = torch.randn(dim, grid.frames, grid.height, grid.width, generator=generator)
    for axis, length in enumerate(lengths, 1):
        at = torch.arange(field.shape[axis], dtype=torch.float32)
        kernel = torch.exp(-((at[:, None] - at) ** 2) / length**2)
        kernel = kernel / kernel.norm(dim=1, keepdim=True)
        field = torch.tensordot(field, kernel.T, dims=([axis], [0])).movedim(-1, axis)
    return field.flatten(1).T


def _rms_norm(rows: Tensor) -> Tensor:
    return rows / rows.square().mean(-1, keepdim=True).sqrt()


def rotate(rows: Tensor, grid: TokenGrid) -> Tensor:
    """3-D rotary embedding of video rows `(V, D)`, a third of the channel pairs for each axis."""
    pairs = rows.shape[-1] // 2
    shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    token = torch.arange(grid.video_tokens)
    place = token % grid.frame_tokens
    axes = (token // grid.frame_tokens, place // grid.width, place % grid.width)
    angles = torch.cat(
        [at[:, None] * ROPE_BASE ** (-torch.arange(share) / max(share, 1)) for at, share in zip(axes, shares)], -1
    )
    turned = torch.view_as_complex(rows.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones(()), angles)
    return torch.view_as_real(turned).flatten(-2)


def _with_text(video: Tensor, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    text = torch.randn(grid.text, video.shape[-1], generator=generator)
    return torch.cat((text, video) if grid.text_first else (video, text))
