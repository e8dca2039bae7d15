"""Guidance by perturbed attention heads and skipped blocks."""

from .combine import combine
from .config import GuidanceConfig
from .guide import Guided, guide, guided, unguide
from .guider import HeadPerturbationGuidance
from .heads import Head, HeadSet, resolve_heads
from .model import ModelMap, map_model
from .presets import preset_names

__all__ = [
    "GuidanceConfig",
    "Guided",
    "Head",
    "HeadPerturbationGuidance",
    "HeadSet",
    "ModelMap",
    "combine",
    "guide",
    "guided",
    "map_model",
    "preset_names",
    "resolve_heads",
    "unguide",
]
