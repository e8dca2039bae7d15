"""Predictions in the output of a transformer: a tuple, an output class, tensors or lists of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def predictions(output: Any) -> list[Tensor]:
    """Every prediction `(B, ...)` of an output; LTX-2 has one of the video and one of the sound."""
    parts = output if isinstance(output, tuple) else output.to_tuple() if hasattr(output, "to_tuple") else (output,)
    return [torch.stack(part) if isinstance(part, list) else part for part in parts if part is not None]


def with_predictions(output: Any, guided: list[Tensor]) -> Any:
    """The same kind of output with other predictions, in their dtypes."""
    rest = iter(guided)

    def swap(part: Any) -> Any:
        if part is None:
            return None
        new = next(rest)
        return [x.to(y) for x, y in zip(new, part)] if isinstance(part, list) else new.to(part)

    if isinstance(output, tuple):
        return tuple(swap(part) for part in output)
    if isinstance(output, dict):
        return type(output)(**{name: swap(part) for name, part in output.items()})
    return swap(output)
