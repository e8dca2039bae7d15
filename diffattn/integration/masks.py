"""What an attention mask says about keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def as_key_mask(mask: Any, batch: int, tokens: int, kind: str = "keys") -> tuple[str | None, Tensor | None]:
    """`(None, (B, S) key mask)` from a boolean mask that may be one, or `(reason, None)`.

    `kind` is `Adapter.mask`: `"keys"` for `(B|1, 1, 1, S)` or `(B, S)`, `"product"` for the outer product of a key
    mask with itself `(B|1, 1, S, S)`, of which rows that see nothing are rows that nobody reads, `"segments"` for
    `(B|1, 1, S, S)` that nobody reads but in the segment of the last token.
    """
    if not isinstance(mask, Tensor):
        return "a mask that is not a tensor", None
    if kind == "packed":
        return "samples with texts of different lengths, packed", None
    if mask.dtype != torch.bool:
        return "a mask that adds to the scores", None
    if kind == "product" and mask.ndim == 4 and mask.shape[-2] == tokens:
        mask = mask.any(-2, keepdim=True)
    if kind == "segments" and mask.ndim == 4:
        mask = mask[..., -1:, :]
    if mask.ndim == 4 and not any(mask.stride()[1:3]):  # one row, expanded over heads and queries
        mask = mask[:, :1, :1]
    rows = mask.ndim == 2 or mask.shape[-2] == 1
    if not rows or mask.shape[-1] != tokens or mask.numel() not in (tokens, batch * tokens):
        return "a mask that is not a key mask", None
    return None, mask.reshape(-1, tokens).expand(batch, tokens)
