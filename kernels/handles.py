"""Objects that operators find again by a tensor.

Dynamo makes a constant, and a new graph, of every int that differs; a 0-dim tensor is an input like any other.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

_numbers = itertools.count()
_objects: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def number_of(thing: Any) -> Tensor:
    """A 0-dim int64 tensor on the CPU by which `thing_of` finds the object again, as long as it lives."""
    number = next(_numbers)
    _objects[number] = thing
    return torch.tensor(number)


def thing_of(number: Tensor) -> Any:
    """The object that was given this number."""
    return _objects[int(number)]
