"""The objective of a search: a function of clips and their prompts. Objectives can be added with weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Objective:
    """A score per clip; higher is better. Objectives can be added: `0.7 * ClipScore() + 0.3 * Sharpness()`.

    Args:
        function (`Callable`): clips `(B, T, C, H, W)` in 0..1, float32 (an image is a clip of one frame), and B
            prompts to a tensor `(B,)`. It must be differentiable for `screen="gradient"`.
        name (`str`, *optional*): what the log of a search calls it; the name of the function by default.
    """

    def __init__(self, function: Callable[[Tensor, list[str]], Tensor], name: str | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__qualname__", type(function).__name__)

    def __call__(self, videos: Tensor, prompts: list[str]) -> Tensor:
        return self.function(videos, prompts)

    def __repr__(self) -> str:
        return self.name

    def __mul__(self, weight: float) -> Objective:
        return weighted_sum([(float(weight), self)])

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __add__(self, other: Objective) -> Objective:
        return weighted_sum([(1.0, self), (1.0, other)])

    def __sub__(self, other: Objective) -> Objective:
        return weighted_sum([(1.0, self), (-1.0, other)])


def weighted_sum(terms: list[tuple[float, Objective]]) -> Objective:
    """One objective of several, each with its weight."""

    def total(videos: Tensor, prompts: list[str]) -> Tensor:
        return sum(weight * objective(videos, prompts) for weight, objective in terms)

    return Objective(total, " + ".join(f"{weight:g} * ({objective.name})" for weight, objective in terms))
