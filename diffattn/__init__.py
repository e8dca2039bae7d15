"""Sparse attention and head-level guidance for Hugging Face diffusers."""

import os

_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")):
    # a source checkout, where kernels/ and pipelines/ lie beside this directory
    __path__.append(os.path.dirname(_here))

from .apply import apply_sparse_attention, disable, enable, remove_sparse_attention  # noqa: E402
from .assets import tiny_wan  # noqa: E402
from .config import AttentionConfig, config  # noqa: E402
from .functional import make_plan, sparse_attention  # noqa: E402
from .grid import TokenGrid  # noqa: E402
from .guidance import GuidanceConfig, HeadPerturbationGuidance, HeadSet, guide, unguide  # noqa: E402
from .hunting import hunt  # noqa: E402
from .kernels.attend import attend  # noqa: E402
from .kernels.plan import Plan  # noqa: E402
from .kernels.tile_list import TileList  # noqa: E402
from .methods import (  # noqa: E402
    AutoConfig,
    NeighborhoodConfig,
    PyramidConfig,
    RadialConfig,
    RectifiedConfig,
    VMoBAConfig,
)
from .schedule import Schedule  # noqa: E402
from .summary import summary  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "AttentionConfig",
    "AutoConfig",
    "GuidanceConfig",
    "HeadPerturbationGuidance",
    "HeadSet",
    "NeighborhoodConfig",
    "Plan",
    "PyramidConfig",
    "RadialConfig",
    "RectifiedConfig",
    "Schedule",
    "TileList",
    "TokenGrid",
    "VMoBAConfig",
    "apply_sparse_attention",
    "attend",
    "config",
    "disable",
    "enable",
    "guide",
    "hunt",
    "make_plan",
    "remove_sparse_attention",
    "sparse_attention",
    "summary",
    "tiny_wan",
    "unguide",
]
