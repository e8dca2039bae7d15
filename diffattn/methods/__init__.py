"""Methods: each file is one planner."""

from .auto import AutoConfig
from .pyramid import PyramidConfig
from .radial import RadialConfig
from .rectified import RectifiedConfig

__all__ = ["AutoConfig", "PyramidConfig", "RadialConfig", "RectifiedConfig"]
