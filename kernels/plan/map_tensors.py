"""Applying a function to all tensors of a dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def map_tensors(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """`part` with `change(tensor)` for each tensor in it, nested ones included; `part` itself if none changes."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, tuple):
        found = tuple(map_tensors(entry, change) for entry in part)
        return found if any(new is not old for new, old in zip(found, part)) else part
    if not is_dataclass(part):
        return part
    old = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    new = {name: map_tensors(value, change) for name, value in old.items()}
    return replace(part, **new) if any(new[name] is not old[name] for name in old) else part


def trainable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of an inference tensor, which no backward could use."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor
