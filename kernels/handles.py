"""Tensors that stand for objects in the arguments of operators.

Dynamo turns every new int into a constant and a new graph; a 0-dim tensor is an input like any other.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

_next_numbers = itertools.count()
_objects: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def handle_of(object_: Any) -> Tensor:
    """A 0-dim int64 tensor on the CPU from which `object_of` finds the object, as long as the object lives."""
    number = next(_next_numbers)
    _objects[number] = object_
    with torch.inference_mode(False):  # backward graphs save it, and cannot save inference tensors
        return torch.tensor(number, device="cpu")


def object_of(handle: Tensor) -> Any:
    """The object that was given this handle."""
    return _objects[int(handle)]
