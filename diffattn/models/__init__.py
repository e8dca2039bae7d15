"""Adapters: what differs between model families, one small file for families that resemble each other."""

from . import (
    flux,
    hunyuan,
    hunyuan_video15,
    image,
    joint_image,
    kandinsky,
    minimax,
    text_keys,
    video,
    wan,
)
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
    "joint_image",
    "kandinsky",
    "minimax",
    "supported_models",
    "text_keys",
    "video",
    "wan",
]
