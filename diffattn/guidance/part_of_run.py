"""The part of a run in which guidance is on, and checks of options."""

from __future__ import annotations

import math
from typing import Any


def is_in_part(start: float, stop: float, step: tuple[int, int] | None, by_step: bool = False) -> bool:
    """Whether step `(step, steps)` is in the part from `start` to `stop` of the run.

    Raises:
        ValueError: the step is not known, and it matters: not the whole run, or a schedule `by_step`.
    """
    if step is not None:
        at, steps = step
        return int(start * steps) <= at < int(stop * steps)
    if (start, stop) != (0, 1) or by_step:
        raise ValueError(
            f"the denoising step is not known here, but start={start}, stop={stop} or a schedule "
            "needs it: guide the whole pipeline, or call the transformer within "
            "`cache_context(name, step_index=, num_inference_steps=)`"
        )
    return True


def check_number(name: str, value: Any, low: float | None = None, high: float | None = None) -> None:
    """Raise a ValueError unless `value` is a finite number from `low` to `high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (low is not None and value < low) or (high is not None and value > high):
        span = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise ValueError(f"{name} must be a number{span}, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
