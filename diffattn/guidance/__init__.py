"""Guidance by perturbed attention heads, by skipped blocks and by a negative prompt."""

from .apply_guidance import guide, unguide
from .formula import combine
from .guidance_config import GuidanceConfig
from .guided_run import Guided, guided
from .guider import HeadPerturbationGuidance
from .head_names import resolve_heads
from .head_set import Head, HeadSet
from .model import ModelMap, map_model
from .nag import NAGConfig
from .presets import preset_names

__all__ = [
    "GuidanceConfig",
    "Guided",
    "Head",
    "HeadPerturbationGuidance",
    "HeadSet",
    "ModelMap",
    "NAGConfig",
    "combine",
    "guide",
    "guided",
    "map_model",
    "preset_names",
    "resolve_heads",
    "unguide",
]
