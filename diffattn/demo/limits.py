"""Limits of one request, so that other users get their turn."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from .request import Request

LARGEST_SEED = 2**32 - 1
LEAST_SIDE = 16
INTEGERS = ("steps", "seed", "width", "height", "frames")
NUMBERS = ("density", "dense_start", "guidance_scale", "head_scale", "head_strength")
HEAD = re.compile(r"\d{1,4}:\d{1,4}", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """Upper bounds of a run and of the queue.

    Args:
        side (`int`, *optional*, defaults to 256): pixels of the longer side.
        frames (`int`, *optional*, defaults to 65): frames of a video.
        steps (`int`, *optional*, defaults to 50): denoising steps.
        prompt (`int`, *optional*, defaults to 500): characters.
        seconds (`int`, *optional*, defaults to 900): of both runs together; longer ones are stopped.
        queue (`int`, *optional*, defaults to 8): waiting runs.
    """

    side: int = 256
    frames: int = 65
    steps: int = 50
    prompt: int = 500
    seconds: int = 900
    queue: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Limits {name} must be an integer of at least 1, got {value!r}")

    @classmethod
    def of(cls, device: str) -> Limits:
        """For a CPU the embedded model at twice its size; for anything else a video of 121 frames in 720p."""
        return cls() if device == "cpu" else cls(side=1280, frames=121, steps=60, seconds=3600)

    def check(self, request: Request) -> Request:
        """The request with whole numbers as `int` and every head once.

        Raises:
            ValueError: names the first wrong value and its range.
        """
        if not isinstance(request.prompt, str) or not request.prompt.strip():
            raise ValueError("Type a prompt first.")
        if len(request.prompt) > self.prompt:
            raise ValueError(f"The prompt may have {self.prompt} characters, this one has {len(request.prompt)}.")
        if not isinstance(request.nag, str) or len(request.nag) > self.prompt:
            raise ValueError(f"The negative prompt must be a text of at most {self.prompt} characters.")
        for name in INTEGERS:
            request = replace(request, **{name: _integer(name, getattr(request, name))})
        for name in NUMBERS:
            _number(name, getattr(request, name))
        self._check_ranges(request)
        request = replace(request, heads=_heads(request.heads))
        _ = request.config, request.schedule
        return request

    def _check_ranges(self, request: Request) -> None:
        ranges = {
            "steps": (1, self.steps),
            "width": (LEAST_SIDE, self.side),
            "height": (LEAST_SIDE, self.side),
            "frames": (1, self.frames),
            "seed": (0, LARGEST_SEED),
            "guidance_scale": (0, 50),
            "head_scale": (0, 50),
            "head_strength": (0, 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(request, name)
            if not least <= value <= most:
                raise ValueError(f"{_title(name)} must be from {least} to {most}, not {value}.")


def _integer(name: str, value: Any) -> int:
    value = _number(name, value)
    if value != int(value):
        raise ValueError(f"{_title(name)} must be a whole number, not {value}.")
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{_title(name)} must be a number, not {'empty' if value is None else repr(value)}.")
    return value


def _heads(heads: Any) -> tuple[str, ...]:
    if not isinstance(heads, (list, tuple)):
        raise ValueError(f"Heads must be a list of layer:head, not {heads!r}.")
    for head in heads:
        if not isinstance(head, str) or not HEAD.fullmatch(head):
            raise ValueError(f"A head is layer:head, such as 4:1, not {str(head)[:40]!r}.")
    return tuple(dict.fromkeys(heads))


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
