"""Methods: each file is one planner."""

from ..attention_config import METHODS, config
from .auto import AutoConfig
from .calibrated import CalibratedConfig
from .nabla import NablaConfig
from .neighborhood import NeighborhoodConfig, WindowReport
from .pyramid import PyramidConfig
from .radial import RadialConfig
from .rectified import RectifiedConfig
from .sol import SolConfig
from .vmoba import VMoBAConfig

__all__ = [
    "METHODS",
    "AutoConfig",
    "CalibratedConfig",
    "NablaConfig",
    "NeighborhoodConfig",
    "PyramidConfig",
    "RadialConfig",
    "RectifiedConfig",
    "SolConfig",
    "VMoBAConfig",
    "WindowReport",
    "config",
]
