"""How far in time and space the heads of the embedded model look, as a table: do they differ?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from diffattn import TokenGrid
from diffattn.methods._order import coordinates

from .report import markdown
from .sources import Sample

TIMES = ((0, 0), (1, 1), (2, 3), (4, 99))  # frames apart
SPACES = ((0, 1), (2, 3), (4, 99))  # tokens apart, the larger of rows and columns


def mass_by_distance(sample: Sample) -> Tensor:
    """`(H, columns)` shares of the attention mass: by frames apart, by tokens apart, and of the best tenth of keys."""
    probs = (sample.query.shape[-1] ** -0.5 * sample.query.transpose(1, 2) @ sample.key.transpose(1, 2).mT).softmax(-1)
    tenth = probs.topk(round(0.1 * probs.shape[-1]), -1).values.sum(-1).mean((0, -1))
    probs = probs.mean(0)  # (H, S, S)
    shares = [(probs * band).sum((-1, -2)) / probs.shape[-1] for band in _bands(sample.grid)]
    return torch.stack([*shares, tenth], -1)


def shares_by_head(samples: Iterable[Sample]) -> dict[str, list[float]]:
    """The mean of `mass_by_distance` for each `layer.head`; under `even`, what even attention would have."""
    by_layer: dict[int, list[Tensor]] = {}
    for sample in samples:
        by_layer.setdefault(sample.layer, []).append(mass_by_distance(sample))
        grid = sample.grid
    rows = {
        f"{layer}.{head}": shares
        for layer, parts in sorted(by_layer.items())
        for head, shares in enumerate(torch.stack(parts).mean(0).tolist())
    }
    return rows | {"even": [float(band.double().mean()) for band in _bands(grid)] + [0.1]}


def table(samples: Iterable[Sample]) -> str:
    """Markdown: a row for each head of each layer, and one of even attention to compare with."""
    rows = shares_by_head(samples).items()
    return markdown(["layer.head", *COLUMNS], [[name, *(f"{share:.2f}" for share in row)] for name, row in rows])


def _bands(grid: TokenGrid) -> list[Tensor]:
    """`(S, S)` bool for every column but the last."""
    at = coordinates(grid)
    apart = (at[:, None] - at).abs()
    time, space = apart[..., 0], apart[..., 1:].amax(-1)
    return [(low <= time) & (time <= high) for low, high in TIMES] + [
        (low <= space) & (space <= high) for low, high in SPACES
    ]


def _range(band: tuple[int, int]) -> str:
    low, high = band
    return f"{low}" if low == high else f"{low}+" if high == 99 else f"{low}-{high}"


COLUMNS = [*(f"{_range(b)} frames" for b in TIMES), *(f"{_range(b)} tokens" for b in SPACES), "best tenth of keys"]
