"""Search for the attention heads to guide with."""

from .hunter import estimate, hunt
from .objective import Objective
from .objectives import Colourfulness, Motion, Sharpness
from .search import Estimate, Settings

__all__ = ["Colourfulness", "Estimate", "Motion", "Objective", "Settings", "Sharpness", "estimate", "hunt"]
