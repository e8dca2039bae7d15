"""The attention map of a plan as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.plan.plan import Plan
from ..kernels.plan.sampled_levels import sampled_levels

if TYPE_CHECKING:
    from .recall import Recall

PIXELS = 512
STOPS = ((0.07, 0.15, 0.42), (0.13, 0.49, 0.66), (0.55, 0.79, 0.62), (0.98, 0.89, 0.55))  # from exact to coarse
DROPPED = (1.0, 1.0, 1.0)


def draw_plan(plan: Plan, path: Path, title: str = "", head: int = 0) -> None:
    """Write the attention map of one head as a PNG: queries down, keys across, in the order of the tokens.

    Every pixel is one pair of tokens; dark is exact, lighter is coarser, white is dropped.

    Raises:
        ImportError: without matplotlib.
    """
    figure_class, patch = _matplotlib()
    tokens = torch.linspace(0, plan.tokens - 1, min(PIXELS, plan.tokens)).round().long()
    levels = sampled_levels(plan, tokens, tokens, head=head)
    colours = level_colours([lists.pool for lists in plan.lists])
    image = torch.ones(*levels.shape, 3)
    for level, colour in colours.items():
        image[levels == level] = torch.tensor(colour)
    figure = figure_class(figsize=(6, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image.numpy(), extent=(0, plan.tokens, plan.tokens, 0), interpolation="nearest")
    axes.set(title=title, xlabel="key token", ylabel="query token")
    names = {0: "dropped", 1: "exact"}
    handles = [patch(facecolor=colour, edgecolor="gray", label=names.get(level, f"mean of {level}"))
               for level, colour in colours.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize="small")
    figure.savefig(path, dpi=120)


def draw_recall(recalls: list[Recall], path: Path, title: str = "") -> None:
    """Write two maps of layers down and heads across as a PNG: mass on exact keys, and error of the output.

    Raises:
        ImportError: without matplotlib.
    """
    figure_class, _ = _matplotlib()
    figure = figure_class(figsize=(7.5, 0.42 * len(recalls) + 1.8), layout="constrained")
    for axes, name, meaning, colours in zip(
        figure.subplots(1, 2), ("exact", "error"), ("mass on exact keys", "error of the output"), ("YlGnBu", "OrRd")
    ):
        values = torch.stack([getattr(part, name) for part in recalls])
        axes.imshow(values.numpy(), cmap=colours, vmin=0, vmax=1, aspect="auto")
        for place, value in zip(torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(), values.flatten()):
            shade = "white" if value > 0.55 else "black"
            axes.text(place[1], place[0], f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
        axes.set(title=meaning, xlabel="head", ylabel="layer", xticks=range(values.shape[1]))
        axes.set_yticks(range(len(recalls)), [part.layer for part in recalls])
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_densities(shares: Tensor, path: Path, title: str = "") -> None:
    """Write a map of layers down and denoising steps across as a PNG; `shares` `(layers, steps)`, from 0 to 1.

    Raises:
        ImportError: without matplotlib.
    """
    figure_class, _ = _matplotlib()
    figure = figure_class(figsize=(7.5, 0.12 * len(shares) + 2.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="YlGnBu", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set(title=title, xlabel="denoising step", ylabel="layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, label="share computed")
    figure.savefig(path, dpi=120)


def level_colours(pools: list[int]) -> dict[int, tuple[float, ...]]:
    """A colour for each pool, from dark (exact) to light, and white for what is dropped (0)."""
    pools, colours = sorted(pools), {0: DROPPED}
    for index, pool in enumerate(pools):
        place = index / max(len(pools) - 1, 1) * (len(STOPS) - 1)
        stop = min(int(place), len(STOPS) - 2)
        share = place - stop
        colours[pool] = tuple(a + share * (b - a) for a, b in zip(STOPS[stop], STOPS[stop + 1]))
    return colours


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "diffattn[viz]"') from error
    return Figure, Patch
