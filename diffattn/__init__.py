# ruff: noqa: F401
"""Sparse attention and head-level guidance for Hugging Face diffusers."""

import importlib
import os
from typing import TYPE_CHECKING, Any

_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")):
    # a source checkout, where kernels/ and pipelines/ lie beside this directory
    __path__.append(os.path.dirname(_here))

if TYPE_CHECKING:
    from .analysis.calibration import calibrate
    from .analysis.summary import summary
    from .assets import tiny_wan
    from .attention_config import AttentionConfig
    from .functional import make_plan, sparse_attention
    from .grid import TokenGrid
    from .guidance import GuidanceConfig, HeadPerturbationGuidance, HeadSet, NAGConfig, guide, unguide
    from .hunting import hunt
    from .integration.apply import apply_sparse_attention, disable, enable, remove_sparse_attention
    from .integration.decoder import disable_decoder, enable_decoder
    from .kernels.attend import attend
    from .kernels.plan import Plan, TileList
    from .methods import (
        AutoConfig,
        CalibratedConfig,
        NablaConfig,
        NeighborhoodConfig,
        PyramidConfig,
        RadialConfig,
        RectifiedConfig,
        SolConfig,
        VMoBAConfig,
        config,
    )
    from .schedule import Schedule

__version__ = "0.1.0"

# where each public name lives; a module loads when the first of its names is used
_MODULES = {
    "analysis.calibration": ("calibrate",),
    "analysis.summary": ("summary",),
    "assets": ("tiny_wan",),
    "attention_config": ("AttentionConfig",),
    "functional": ("make_plan", "sparse_attention"),
    "grid": ("TokenGrid",),
    "guidance": ("GuidanceConfig", "HeadPerturbationGuidance", "HeadSet", "NAGConfig", "guide", "unguide"),
    "hunting": ("hunt",),
    "integration.apply": ("apply_sparse_attention", "disable", "enable", "remove_sparse_attention"),
    "integration.decoder": ("disable_decoder", "enable_decoder"),
    "kernels.attend": ("attend",),
    "kernels.plan": ("Plan", "TileList"),
    "methods": (
        *("AutoConfig", "CalibratedConfig", "NablaConfig", "NeighborhoodConfig", "PyramidConfig", "RadialConfig"),
        "RectifiedConfig",
        *("SolConfig", "VMoBAConfig", "config"),
    ),
    "schedule": ("Schedule",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
