"""Memory that a thread reuses: a fresh page costs more than the write to it."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor


class Scratch:
    """Tensors of one thread on `device`, undefined content, valid until the next call with the same name.

    >>> scratch = Scratch(torch.device("cpu"))
    >>> scratch("scores", torch.float32, 2, 3).shape
    torch.Size([2, 3])
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._memory = device, {}

    def __call__(self, name: Hashable, dtype: torch.dtype, *shape: int) -> Tensor:
        """A contiguous tensor of this shape; a name has one dtype."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.shape[0] < size:
            memory = self._memory[name] = torch.empty(size, dtype=dtype, device=self.device)
        return memory[:size].view(shape)
