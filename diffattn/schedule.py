"""Which steps and layers stay dense, and how long a plan is kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Schedule:
    """Dense steps at the start and the end of a run, dense first layers, and how long plans are kept.

    A `float` below 1 is a fraction of the run (or of the layers), rounded to the nearest whole number; an `int` is a
    count. The first steps decide the layout of a video, and every published sparse method keeps some of them dense
    (Radial Attention, arXiv 2506.19852, Section 5.1: 12 of 50). Steps are the scheduler's: a run with `strength` below
    1 begins at a later one, past some of the dense ones.

    Args:
        dense_start (`float | int`, *optional*, defaults to 0.2): first steps.
        dense_end (`float | int`, *optional*, defaults to 0): last steps.
        dense_layers (`float | int`, *optional*, defaults to 0): first self-attention layers.
        refresh (`int`, *optional*, defaults to 1): for how many sparse steps the plans of a dynamic method are used.
            Each pass of the model (conditional, unconditional) keeps its own, and a run starts without any. Where
            the step is not known, and where gradients are recorded, every call makes its plan.

    Raises:
        ValueError: a share is no fraction and no count, or `refresh` is no integer of at least 1.

    Example:

    >>> schedule = Schedule(dense_start=0.2, dense_end=1)
    >>> [schedule.is_dense_step(step, 10) for step in range(10)]
    [True, True, False, False, False, False, False, False, False, True]
    """

    dense_start: float | int = 0.2
    dense_end: float | int = 0
    dense_layers: float | int = 0
    refresh: int = 1

    def __post_init__(self) -> None:
        for name in ("dense_start", "dense_end", "dense_layers"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (isinstance(value, float) and value > 1):
                raise ValueError(f"Schedule {name} must be a fraction from 0.0 to 1.0 or a count, got {value!r}")
        if isinstance(self.refresh, bool) or not isinstance(self.refresh, int) or self.refresh < 1:
            raise ValueError(f"Schedule refresh must be an integer of at least 1, got {self.refresh!r}")

    def is_dense_step(self, step: int, steps: int) -> bool:
        """Whether step `step` (from 0) of a run of `steps` runs dense."""
        return step not in self.sparse_steps(steps)

    def sparse_steps(self, steps: int) -> range:
        """The steps of a run of `steps` that do not run dense."""
        return range(_count(self.dense_start, steps), steps - _count(self.dense_end, steps))

    def is_dense_layer(self, layer: int, layers: int) -> bool:
        """Whether self-attention layer `layer` (from 0) of `layers` runs dense."""
        return layer < _count(self.dense_layers, layers)

    @property
    def every_step_alike(self) -> bool:
        """Whether no step is treated differently from another, so that steps need not be known."""
        return self.dense_start == 0 and self.dense_end == 0

    def to_dict(self) -> dict:
        """JSON-ready fields."""
        return asdict(self)


def _count(share: float | int, total: int) -> int:
    return math.floor(share * total + 0.5) if isinstance(share, float) else share
