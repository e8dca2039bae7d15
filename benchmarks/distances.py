"""How far in time and space the heads of the embedded model look, as a table and a picture: do they differ?"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from diffattn import TokenGrid
from diffattn.methods._order import coordinates

from .sources import Sample, captured

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
    return _markdown(shares_by_head(samples))


def draw(rows: dict[str, list[float]], path: Path) -> None:
    """A heat map as a PNG: the share in numbers, in colour how often that is what even attention would have."""
    from matplotlib.figure import Figure

    shares = torch.tensor(list(rows.values()))
    figure = Figure(figsize=(10, 0.27 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow((shares / shares[-1]).log2(), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    axes.set_xticks(range(len(_NAMES)), _NAMES, fontsize="small")
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    axes.set(ylabel="layer.head")
    axes.xaxis.tick_top()
    for row, values in enumerate(shares.tolist()):
        for column, value in enumerate(values):
            dark = abs(float(image.get_array()[row, column])) > 1
            colour = "white" if dark else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    bar = figure.colorbar(image, label="share over that of even attention")
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2", "4"])
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Run the embedded model, print the table, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distances", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of three prompts each")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/heads.png"))
    options = parser.parse_args(arguments)
    rows = shares_by_head(captured(options.seeds))
    print(_markdown(rows))
    draw(rows, options.picture)


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


_NAMES = [*(f"{_range(b)} frames" for b in TIMES), *(f"{_range(b)} tokens" for b in SPACES), "best tenth of keys"]


def _markdown(rows: dict[str, list[float]]) -> str:
    lines = ["| layer.head | " + " | ".join(_NAMES) + " |", "|---" * (len(_NAMES) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{share:.2f}" for share in row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
