"""How far the heads of the embedded model look, as a picture: `python -m docs.tools.distances`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.quality.distances import COLUMNS, shares_by_head
from benchmarks.quality.sources import captured

OUT = Path(__file__).parents[1] / "images" / "heads.png"


def draw(rows: dict[str, list[float]], path: Path) -> None:
    """A heat map as a PNG: the share in numbers, in colour how often that is what even attention would have."""
    from matplotlib.figure import Figure

    shares = torch.tensor(list(rows.values()))
    figure = Figure(figsize=(10, 0.27 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow((shares / shares[-1]).log2(), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    axes.set_xticks(range(len(COLUMNS)), COLUMNS, fontsize="small")
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
    """Run the embedded model and draw."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.distances", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of three prompts each")
    parser.add_argument("--out", type=Path, default=OUT, help="the png to write")
    options = parser.parse_args(arguments)
    draw(shares_by_head(captured(options.seeds)), options.out)


if __name__ == "__main__":
    main()
