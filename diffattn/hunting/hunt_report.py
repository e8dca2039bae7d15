"""The report of a search, as JSON and as pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from ..guidance.head_set import HeadSet
from ..guidance.model import ModelMap
from .search import Round

logger = logging.get_logger(__name__)


def write_report(folder: Path, model: ModelMap, heads: HeadSet, found: Sequence[Round]) -> None:
    """Write `headset.json` and `report.json`, and, with matplotlib, `heads.png` and `cost.png`."""
    heads.save(folder / "headset.json")
    about = {"search": heads.search, "rounds": [asdict(one) for one in found]}
    (folder / "report.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    try:
        draw_heads(folder / "heads.png", model, heads, found)
        draw_cost(folder / "cost.png", model, heads)
    except ImportError as error:
        logger.warning(f"{folder} has no pictures: {error}")


def head_map(model: ModelMap, found: Sequence[Round]) -> Tensor:
    """Gain of every head in the first round, `(layers, heads)`; NaN where a head was not tried or does not exist."""
    made = torch.full((len(model.layers), max(model.layers.values())), torch.nan)
    places = {layer: index for index, layer in enumerate(model.layers)}
    for head, gain in found[0].gains.items():
        layer, number = head.rsplit(":", 1)
        made[places[layer], int(number)] = gain
    return made


def draw_heads(path: Path, model: ModelMap, heads: HeadSet, found: Sequence[Round]) -> None:
    """Draw layer by head: the gain in the first round, and the place in the order of selection.

    Raises:
        ImportError: without matplotlib.
    """
    values = head_map(model, found)
    figure = _figure((2.6 + 0.35 * values.shape[1], max(1.6 + 0.28 * len(values), 3.2)))
    axes = figure.subplots()
    reach = values.nan_to_num(0).abs().max().item() or 1.0
    image = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    layers = list(model.layers)
    for place, head in enumerate(heads, 1):
        box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        axes.text(head.head, layers.index(head.layer), place, ha="center", va="center", fontsize="x-small", bbox=box)
    axes.set(xlabel="head", ylabel="layer", facecolor="lightgray")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{heads.search['objective']}: gain of each head", fontsize="medium")
    figure.colorbar(image, ax=axes, label="round 1, gray: not tried")
    figure.savefig(path, dpi=120)


def draw_cost(path: Path, model: ModelMap, heads: HeadSet) -> None:
    """Draw the score after every round against what guidance with these heads costs.

    Raises:
        ImportError: without matplotlib.
    """
    per_round = heads.search["top_k"]
    scores = heads.search["scores"]
    costs = [perturbed_cost(model, heads[: per_round * (n + 1)]) for n in range(len(scores))]
    figure = _figure((5, 3.6))
    axes = figure.subplots()
    axes.plot([0, *costs], [heads.search["unguided"], *scores], "o-")
    for n, (cost, score) in enumerate(zip(costs, scores), 1):
        axes.annotate(per_round * n, (cost, score), textcoords="offset points", xytext=(5, 5))
    axes.margins(0.1)
    axes.set(xlabel="passes added to a step", ylabel=heads.search["objective"])
    axes.set_title("score against cost, by number of heads", fontsize="medium")
    figure.savefig(path, dpi=120)


def perturbed_cost(model: ModelMap, heads: HeadSet) -> float:
    """Cost of the perturbed pass in passes: it starts at the first block with one of these heads."""
    touched = {model.block_of(head.layer) for head in heads}
    if touched & set(model.branches):
        return 1.0
    return 1 - min(model.blocks.index(block) for block in touched) / len(model.blocks)


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "diffattn[viz]"') from error
    return Figure(figsize=size, layout="constrained")
