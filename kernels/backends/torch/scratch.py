"""Memory that a thread reuses: a fresh page costs more than the write to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Tensors of one thread on `device`, undefined content, valid until the next call with the same name.

    >>> scratch = Scratch(torch.device("cpu"))
    >>> scratch("scores", torch.float32, 2, 3).shape
    torch.Size([2, 3])
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._memory, self._views = device, {}, {}

    def __call__(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """A contiguous tensor of this shape; a name has one dtype."""
        views = self._views.setdefault(name, {})
        if shape not in views:
            size = math.prod(shape)
            if name not in self._memory or self._memory[name].numel() < size:
                self._memory[name] = torch.empty(size, dtype=dtype, device=self.device)
                views.clear()
            views[shape] = self._memory[name][:size].view(shape)
        return views[shape]
