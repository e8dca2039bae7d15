"""Adapters: what differs between model families, one small file for families that resemble each other."""

from . import flux, hunyuan, hunyuan_video15, image, video, wan
from .adapter import Adapter, NoGrid, adapter_for, adapter_named, supported_models

__all__ = [
    "Adapter",
    "NoGrid",
    "adapter_for",
    "adapter_named",
    "flux",
    "hunyuan",
    "hunyuan_video15",
    "image",
    "supported_models",
    "video",
    "wan",
]
