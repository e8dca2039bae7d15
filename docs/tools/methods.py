"""The attention maps of all methods side by side, for the documentation: `python -m docs.tools.methods`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffattn
from diffattn import Plan, TokenGrid
from diffattn.analysis.pictures import level_colours
from diffattn.analysis.synthetic import structured_qkv

GRID = TokenGrid(8, 16, 16)
DENSITY = 0.2
LAYER = 2  # VMoBA's partition in space and time
QUERY = (4, 8, 6)  # frame, row, column
METHODS = ("auto", "pyramid", "rectified", "vmoba", "neighborhood", "radial")
OUT = Path(__file__).parents[1] / "images" / "methods.png"
PIXELS = 512
NAMES = {0: "dropped", 1: "exact"}
MARK, LINE = (0.85, 0.12, 0.12), "0.72"


def plans() -> dict[str, Plan]:
    """One plan of each method, on the same made-up queries and keys of one head."""
    query, key, value = structured_qkv(GRID, heads=1)
    return {
        name: diffattn.make_plan(diffattn.config(name, density=DENSITY), GRID, query, key, value=value, layer=LAYER)
        for name in METHODS
    }


def draw(path: Path) -> None:
    """Two pictures of each plan: the map of all queries and keys, and the keys that one query sees, frame by frame."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    made = plans()
    pools = sorted({lists.pool for plan in made.values() for lists in plan.lists})
    colours = level_colours(pools)
    figure = Figure(figsize=(14.4, 8.2), dpi=100, facecolor="white")
    top, bottom = figure.subfigures(2, 1, height_ratios=(16, 1))
    cells = top.subfigures(2, 3)
    for cell, (name, plan) in zip(cells.flat, made.items()):
        _draw_method(cell, name, plan, colours)
    handles = [Patch(facecolor=colour, edgecolor="0.6", label=NAMES.get(pool, f"mean of {pool}"))
               for pool, colour in sorted(colours.items(), key=lambda item: item[0] or 1e9)]  # fmt: skip
    handles.append(Patch(facecolor=MARK, label="the query"))
    bottom.legend(handles=handles, loc="center", ncols=len(handles), frameon=False, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_method(cell: Any, name: str, plan: Plan, colours: dict[int, tuple[float, ...]]) -> None:
    levels = plan.to_dense_levels()[0, 0]
    cell.text(0.07, 0.94, name, fontsize=14, fontweight="bold", va="center")
    cell.text(0.97, 0.94, f"density {plan.density:.2f}", fontsize=11, color="0.35", va="center", ha="right")
    places = {"left": 0.07, "right": 0.97, "top": 0.89, "bottom": 0.09, "wspace": 0.05, "width_ratios": (2, 1)}
    left, right = cell.subplots(1, 2, gridspec_kw=places)
    left.imshow(_shrink(_paint(levels, colours)), extent=(0, GRID.frames, GRID.frames, 0), interpolation="nearest")
    left.set_xticks(range(GRID.frames + 1), [])
    left.set_yticks(range(GRID.frames + 1), [])
    left.grid(color=LINE, linewidth=0.4)
    left.tick_params(length=0)
    left.set_xlabel("keys, frame by frame", fontsize=10)
    left.set_ylabel("queries", fontsize=10)
    right.imshow(_frames(levels, colours), interpolation="nearest")
    right.axis("off")
    right.text(0.5, -0.045, "keys of one query", fontsize=10, ha="center", va="top", transform=right.transAxes)


def _paint(levels: Tensor, colours: dict[int, tuple[float, ...]]) -> Tensor:
    """Levels `(...)` as colours `(..., 3)`."""
    image = torch.ones(*levels.shape, 3)
    for level, colour in colours.items():
        image[levels == level] = torch.tensor(colour)
    return image


def _shrink(image: Tensor) -> Any:
    size = image.shape[0] // PIXELS
    return torch.nn.functional.avg_pool2d(image.movedim(-1, 0), size).movedim(0, -1).numpy()


def _frames(levels: Tensor, colours: dict[int, tuple[float, ...]]) -> Any:
    """The row of one query as two columns of frames, with lines between them and the query marked."""
    frame, row, column = QUERY
    token = (frame * GRID.height + row) * GRID.width + column
    image = _paint(levels[token].view(GRID.frames, GRID.height, GRID.width), colours)
    image[QUERY] = torch.tensor(MARK)
    scale, rows = 8, GRID.frames // 2
    image = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    image = torch.nn.functional.pad(image, (0, 0, 2, 2, 2, 2), value=float(LINE))
    image = torch.nn.functional.pad(image, (0, 0, 3, 3, 3, 3), value=1.0)
    return torch.cat([torch.cat(list(part), 1) for part in image.view(rows, 2, *image.shape[1:])]).numpy()


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.methods", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the png to write")
    draw(parser.parse_args().out)


if __name__ == "__main__":
    main()
