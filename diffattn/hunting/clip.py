"""Scores of clips by a CLIP model, given their prompts. The model is downloaded when it is first used."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .objective import Objective

FRAMES = 8  # of a clip that are looked at


class ClipScore(Objective):
    """Logit of a CLIP model for a clip's frames and its prompt, the mean over some frames.

    Args:
        model (`str`, *optional*): repository or folder of a `CLIPModel`.
        processor (`str`, *optional*): repository or folder with its tokenizer and its image settings; `model` by
            default.
        name (`str`, *optional*): what the log of a search calls it.
    """

    def __init__(
        self, model: str = "openai/clip-vit-base-patch32", processor: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(self.score, name or f"clip {model}")
        self.model, self.processor = model, processor or model

    @cached_property
    def parts(self) -> tuple[Any, Any, dict]:
        """Model, tokenizer and image settings."""
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        settings = CLIPImageProcessor.from_pretrained(self.processor)
        model = CLIPModel.from_pretrained(self.model).eval().requires_grad_(False)
        return model, AutoTokenizer.from_pretrained(self.processor), settings

    def score(self, videos: Tensor, prompts: list[str]) -> Tensor:
        """`(B, T, 3, H, W)` in 0..1 and B prompts to `(B,)`; differentiable in the clips."""
        model, tokenizer, settings = self.parts
        model.to(videos.device)
        frames = videos[:, torch.linspace(0, videos.shape[1] - 1, min(FRAMES, videos.shape[1])).round().long()]
        count, size = frames.shape[1], model.config.vision_config.image_size
        pixels = _squares(frames.flatten(0, 1), size)
        mean, std = (pixels.new_tensor(getattr(settings, name))[:, None, None] for name in ("image_mean", "image_std"))
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(videos.device)
        out = model(pixel_values=(pixels - mean) / std, **tokens)
        image = F.normalize(out.image_embeds, dim=-1).unflatten(0, (-1, count))
        text = F.normalize(out.text_embeds, dim=-1)
        return model.logit_scale.exp() * torch.einsum("bnd,bd->b", image, text) / count


def _squares(frames: Tensor, size: int) -> Tensor:
    """The shorter side made `size`, the middle square of the longer one, as CLIP saw images in training."""
    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    shape = (round(height * scale), round(width * scale))
    frames = F.interpolate(frames, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return frames[..., top : top + size, left : left + size]


class PickScore(ClipScore):
    """PickScore v1 (arXiv 2305.01569), a model of human preferences; the objective of arXiv 2506.10978."""

    def __init__(self) -> None:
        super().__init__("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "pickscore_v1")
