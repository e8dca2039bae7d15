"""Calibration: how much of a density each head, layer and part of a run is to have."""

from .calibrate import calibrate, estimate
from .settings import Estimate, Settings

__all__ = ["Estimate", "Settings", "calibrate", "estimate"]
