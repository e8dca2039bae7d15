"""Methods: each file is one planner."""

from .radial import RadialConfig

__all__ = ["RadialConfig"]
