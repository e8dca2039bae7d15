"""An attention plan as data: which key tiles every query tile visits."""

from .affine import Affine
from .boxes import Boxes
from .plan import Plan
from .routed import RoutedRows
from .tile_list import TileList

__all__ = ["Affine", "Boxes", "Plan", "RoutedRows", "TileList"]
