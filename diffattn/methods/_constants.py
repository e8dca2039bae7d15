"""Small tensors of known numbers, kept on their device: making them anew is a copy to the device every time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..attention_config import plain_modes


@lru_cache(maxsize=256)
def constant(numbers: tuple[int | float, ...], device: torch.device) -> Tensor:
    """`(len(numbers),)` float32, or int32 where all are whole; nobody may write to it."""
    whole = all(isinstance(number, int) for number in numbers)
    with plain_modes(torch.device("cpu")):
        return torch.tensor(numbers, dtype=torch.int32 if whole else torch.float32, device="cpu").to(device)
