"""Every class of the support table at a tiny random configuration, video families first."""

from __future__ import annotations

from .cases import Case
from .image_builders import IMAGES
from .video_builders import VIDEOS

CASES: list[Case] = [*VIDEOS, *IMAGES]


def case(name: str) -> Case:
    """The case that prints as `name`."""
    return next(case for case in CASES if str(case) == name)
