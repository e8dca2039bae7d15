"""What a test has to know about one transformer class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A real class, how to build it small, and where its tokens are.

    Args:
        model (`str`): name of the diffusers class.
        config (`dict`): of a tiny model.
        inputs (`Callable`): keyword arguments of its forward.
        grid (`tuple`): frames, height, width in tokens.
        attention (`str`): regular expression of the modules that diffattn may touch.
        others (`tuple[int, ...]`): how many tokens beside the grid the sequences have, one entry per kind of call.
        before (`int`): how many of them come before the grid; -1 for all.
        calls (`int`): attention calls of one layer in one forward.
        label (`str`): tells cases of one class apart.
        dense (`dict`): reasons and numbers of calls of one layer in one forward that are dense whatever the plan.
        read (`Callable`): the part of the output that pipelines read.
    """

    model: str
    config: dict
    inputs: Callable[[], dict]
    grid: tuple[int, int, int]
    attention: str
    others: tuple[int, ...] = (0,)
    before: int = 0
    calls: int = 1
    label: str = ""
    dense: dict = field(default_factory=dict)
    read: Callable[[Tensor], Tensor] = lambda out: out

    def __str__(self) -> str:
        return self.model.replace("Transformer", "").replace("3DModel", "").replace("2DModel", "") + self.label

    @property
    def video(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        model = getattr(diffusers, self.model)(**self.config).eval()
        with torch.no_grad():
            # what starts as zero (gates, output layers, modulations) would hide attention
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
        return model

    def run(self, model: nn.Module, **changes) -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            out = model(**{**self.inputs(), "return_dict": False, **changes})
        out = out[0] if isinstance(out, tuple) else out
        return self.read(torch.stack(list(out)) if isinstance(out, (list, tuple)) else out)


def normal(*shape: int) -> Tensor:
    """Fresh random numbers; `Case.run` seeds them."""
    return torch.randn(*shape)


def lengths(valid: tuple[int, ...], total: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """`(B, total)` mask, `valid[b]` ones and zeros after them."""
    return (torch.arange(total) < torch.tensor(valid)[:, None]).to(dtype)


def positions(frames: int, height: int, width: int, columns: int = 3, image: int = 0) -> Tensor:
    """`(frames * height * width, columns)` position ids of an image."""
    at = torch.zeros(height, width, columns)
    at[..., 0] = image
    at[..., 1] += torch.arange(height)[:, None]
    at[..., 2] += torch.arange(width)
    return at.flatten(0, 1)
