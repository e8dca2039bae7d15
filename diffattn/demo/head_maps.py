"""The attention heads of a model: their names to choose from, their maps in one picture, and which one was clicked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
from PIL import Image, ImageDraw, ImageFont

from ..analysis.pictures import DROPPED, level_colours
from ..guidance import ModelMap, map_model
from ..kernels.plan.plan import Plan
from ..kernels.plan.sampled_levels import sampled_levels
from ..models import supported_models

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SIDE, CAPTION, GAP = 64, 16, 10  # pixels of a map, of its name above it, and between two of them
INK, FRAME, CHOSEN = (71, 85, 105), (203, 213, 225), (37, 99, 235)


def head_names(model: ModelMap) -> list[str]:
    """Every head as `"layer:head"`."""
    return [f"{layer}:{head}" for layer, count in enumerate(model.layers.values()) for head in range(count)]


def model_in(folder: str | Path) -> ModelMap | None:
    """The map of a pipeline folder's transformer, from its configuration alone; None where that is not supported."""
    parts = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    name = (parts.get("transformer") or [None, None])[1]
    if name not in supported_models():
        return None
    made = getattr(diffusers, name)
    with torch.device("meta"):
        return map_model(made.from_config(made.load_config(folder, subfolder="transformer")))


def draw_heads(plans: Mapping[int, Plan], model: ModelMap, chosen: Collection[str], path: Path) -> None:
    """Write what every head computes as a PNG: layers across, heads down, each map as [`draw_plan`] draws it.

    Args:
        plans (`dict[int, Plan]`): by number of the layer, on the CPU; a layer without one is dense.
        model ([`ModelMap`]): which layers and heads there are.
        chosen (`list[str]`): heads to mark with a frame, as `"layer:head"`.
        path (`Path`): the png.
    """
    counts = list(model.layers.values())
    size = GAP + len(counts) * (SIDE + GAP), GAP + max(counts) * (CAPTION + SIDE + GAP)
    canvas = Image.new("RGB", size, "white")
    pools = sorted({lists.pool for plan in plans.values() for lists in plan.lists} | {1})
    colours = torch.tensor([level_colours(pools).get(pool, DROPPED) for pool in range(pools[-1] + 1)])
    for layer, count in enumerate(counts):
        for head in range(count):
            _draw_head(canvas, layer, head, plans.get(layer), colours, f"{layer}:{head}" in chosen)
    canvas.save(path)


def head_at(x: int, y: int) -> str | None:
    """The head whose map or name is at a pixel of that picture, None between them."""
    (layer, right), (head, below) = divmod(x - GAP, SIDE + GAP), divmod(y - GAP, CAPTION + SIDE + GAP)
    inside = layer >= 0 and head >= 0 and right < SIDE and below < CAPTION + SIDE
    return f"{layer}:{head}" if inside else None


def toggled(heads: list[str], head: str | None) -> list[str]:
    """The heads with one more, or without it if it was among them."""
    if head is None:
        return heads
    return [other for other in heads if other != head] if head in heads else [*heads, head]


def _draw_head(
    canvas: Image.Image, layer: int, head: int, plan: Plan | None, colours: torch.Tensor, chosen: bool
) -> None:
    left, top = GAP + layer * (SIDE + GAP), GAP + head * (CAPTION + SIDE + GAP)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    name = f"{layer}:{head}" if plan is not None else f"{layer}:{head} dense"
    draw.text((left, top), name, fill=CHOSEN if chosen else INK, font=font)
    levels = torch.ones(SIDE, SIDE, dtype=torch.long)
    if plan is not None:
        tokens = torch.linspace(0, plan.tokens - 1, SIDE).round().long()
        levels = sampled_levels(plan, tokens, tokens, head=head)
    pixels = (colours[levels] * 255).round().byte().numpy()
    canvas.paste(Image.fromarray(pixels), (left, top + CAPTION))
    box = (left - 1, top + CAPTION - 1, left + SIDE, top + CAPTION + SIDE)
    draw.rectangle(box, outline=CHOSEN if chosen else FRAME, width=1)
    if chosen:
        draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), outline=CHOSEN, width=2)
