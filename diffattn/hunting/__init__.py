"""Search for the attention heads to guide with."""

from .hunt import estimate, hunt
from .objectives import Colourfulness, Motion, Objective, Sharpness
from .search import Estimate, Settings

__all__ = ["Colourfulness", "Estimate", "Motion", "Objective", "Settings", "Sharpness", "estimate", "hunt"]
