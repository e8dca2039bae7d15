"""Wan 2.1 and 2.2, text-to-video and image-to-video: text and image arrive by cross-attention, which stays dense."""

from __future__ import annotations

from torch import nn

from .adapter import Adapter, register


def _attention(model: nn.Module) -> list[str]:
    return [f"blocks.{index}.attn1" for index in range(len(model.blocks))]


def _grid(model: nn.Module, inputs: dict) -> tuple[int, int, int]:
    sizes = inputs["hidden_states"].shape[2:]  # (B, C, F, H, W)
    frames, height, width = (size // patch for size, patch in zip(sizes, model.config.patch_size))
    return frames, height, width


WAN = register(Adapter("WanTransformer3DModel", _attention, _grid))
