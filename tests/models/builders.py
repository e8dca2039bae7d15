"""Every class of the support table at a tiny random configuration, video families first."""

from __future__ import annotations

import diffusers

from .cases import Case
from .image_builders import IMAGES
from .recent_builders import RECENT
from .video_builders import VIDEOS

# older releases, which tests/versions.sh runs, lack some of the classes
CASES: list[Case] = [made for made in (*VIDEOS, *IMAGES, *RECENT) if hasattr(diffusers, made.model)]


def case(name: str) -> Case:
    """The case that prints as `name`."""
    return next(case for case in CASES if str(case) == name)
