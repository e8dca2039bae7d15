"""Normalised attention guidance (NAG, arXiv 2505.21179): a negative prompt without classifier-free guidance."""

from .config import NAGConfig
from .formula import normalised_guidance

__all__ = ["NAGConfig", "normalised_guidance"]
