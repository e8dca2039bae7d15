"""The built-in objectives, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .clip import ClipScore, PickScore
from .objective import Objective, weighted_sum

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def as_objective(given: Any) -> Objective:
    """An [`Objective`] from a callable or from the name of a built-in one."""
    if isinstance(given, Objective):
        return given
    if isinstance(given, str):
        return by_name([given])
    if callable(given):
        return Objective(given)
    raise TypeError(f"objective must be a callable or one of {', '.join(BUILT_IN)}, got {type(given).__name__}")


class Sharpness(Objective):
    """How much a clip changes from pixel to pixel: the mean of |Laplacian| of its luma, over all frames."""

    def __init__(self) -> None:
        super().__init__(sharpness, "sharpness")


class Motion(Objective):
    """How much a clip changes from frame to frame: the mean of |difference| of its luma."""

    def __init__(self) -> None:
        super().__init__(motion, "motion")


class Colourfulness(Objective):
    """Spread and mean of the opponent colours (Hasler and Suesstrunk 2003), over all frames."""

    def __init__(self) -> None:
        super().__init__(colourfulness, "colourfulness")


def luma(videos: Tensor) -> Tensor:
    """Brightness `(B, T, H, W)` of clips `(B, T, 3, H, W)`."""
    return torch.einsum("btchw,c->bthw", videos, videos.new_tensor(LUMA))


def sharpness(videos: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """See [`Sharpness`]: `(B, T, 3, H, W)` to `(B,)`."""
    kernel = videos.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    laplacian = F.conv2d(luma(videos).flatten(0, 1)[:, None], kernel)
    return laplacian.abs().view(len(videos), -1).mean(1)


def motion(videos: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """See [`Motion`]: `(B, T, 3, H, W)` to `(B,)`."""
    if videos.shape[1] < 2:
        raise ValueError("motion needs clips of at least two frames, got images")
    return luma(videos).diff(dim=1).abs().flatten(1).mean(1)


def colourfulness(videos: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """See [`Colourfulness`]: `(B, T, 3, H, W)` to `(B,)`."""
    red, green, blue = videos.transpose(1, 2).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
    spread = opponents.var(-1).sum(1).clamp(min=1e-12).sqrt()
    return spread + 0.3 * opponents.mean(-1).square().sum(1).clamp(min=1e-12).sqrt()


BUILT_IN: dict[str, Callable[[], Objective]] = {
    "sharpness": Sharpness,
    "motion": Motion,
    "colourfulness": Colourfulness,
    "clip": ClipScore,
    "pickscore": PickScore,
}


def by_name(names: Sequence[str]) -> Objective:
    """The weighted sum of built-in objectives, each `"name"` or `"name=weight"`."""
    terms = []
    for given in names:
        name, _, weight = given.partition("=")
        if name not in BUILT_IN:
            raise ValueError(f"unknown objective {name!r}, known are: {', '.join(BUILT_IN)}")
        try:
            terms.append((float(weight or 1), name))
        except ValueError:
            raise ValueError(f"the weight of objective {name!r} must be a number, got {weight!r}") from None
    if not terms:
        raise ValueError(f"give at least one objective of {', '.join(BUILT_IN)}")
    if len(terms) == 1 and terms[0][0] == 1:
        return BUILT_IN[terms[0][1]]()
    return weighted_sum([(weight, BUILT_IN[name]()) for weight, name in terms])
