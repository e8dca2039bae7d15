"""Inputs of a search on the tiny Wan pipeline, which has no text encoder."""

import torch
from wan import TEXT

SMALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 3.0}


def embeds(seed: int) -> torch.Tensor:
    """Embeddings of a prompt `(1, 6, TEXT)`."""
    return torch.randn(1, 6, TEXT, generator=torch.Generator().manual_seed(seed))
