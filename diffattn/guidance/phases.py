"""What guidance does in each part of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .guidance_config import GuidanceConfig
from .head_names import resolve_heads
from .head_set import HeadSet
from .model import ModelMap
from .selection import Selection, make_selection


@dataclass(frozen=True)
class Phase:
    """What guidance does in some steps."""

    scale: float
    rescale: float
    selection: Selection


def make_phases(model: ModelMap, heads: HeadSet) -> dict[int, Phase]:
    """By entry of the schedule, and -1 for a run without a schedule."""
    config = heads.guidance
    phases = {-1: Phase(config.scale, config.rescale, heads.select(model, config))}
    for index, (_, changes) in enumerate(config.schedule or ()):
        own = _changed_heads(model, heads, changes)
        scale, rescale = changes.get("scale", config.scale), changes.get("rescale", config.rescale)
        phases[index] = Phase(scale, rescale, own.select(model, config))
    return phases


def stack_selections(model: ModelMap, sets: Sequence[HeadSet], config: GuidanceConfig) -> Selection:
    """One selection in which each sample of a batch has its own heads."""
    if len({heads.skip_blocks for heads in sets}) > 1:
        raise ValueError("blocks are skipped for a whole batch: give every sample the same skip_blocks")
    values = {layer: torch.zeros(len(sets), count) for layer, count in model.layers.items()}
    for sample, heads in enumerate(sets):
        for head in heads:
            values[head.layer][sample, head.head] = head.strength
    return make_selection(model, values, sets[0].skip_blocks, config.target, config.rows)


def _changed_heads(model: ModelMap, heads: HeadSet, changes: dict) -> HeadSet:
    """The heads of one entry of a schedule, which may name others."""
    if not {"heads", "layers", "skip_blocks", "strength"} & set(changes):
        return heads
    chosen = {name: changes[name] for name in ("layers", "skip_blocks", "strength") if name in changes}
    base = changes.get("heads", None if {"layers", "skip_blocks"} & set(changes) else heads)
    return resolve_heads(model, base, guidance=heads.guidance, **chosen)
