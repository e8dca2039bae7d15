"""Where queries, keys and values of the study come from: made up with a seed, or captured from the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from diffattn import TokenGrid
from diffattn.analysis.synthetic import structured_qkv

from ..tiny import PROMPTS, load, run

ROUGH_OCTAVES = 4
CAPTURED_STEPS = (1, 4, 8)


@dataclass(frozen=True)
class Sample:
    """One attention call: `(B, S, H, D)` tensors, the grid they lie on, the layer, and labels to group results by."""

    grid: TokenGrid
    query: Tensor
    key: Tensor
    value: Tensor
    layer: int = 0
    labels: dict[str, int] = field(default_factory=dict)


def synthetic(grid: TokenGrid, seeds: int, octaves: int = 1) -> Iterator[Sample]:
    """One sample of four heads for each seed: smooth fields, or rough ones of several octaves."""
    for seed in range(seeds):
        tensors = structured_qkv(grid, seed=seed, octaves=octaves)
        yield Sample(grid, *tensors, layer=seed, labels={"seed": seed})


def captured(seeds: int) -> Iterator[Sample]:
    """Every layer of the embedded model at `CAPTURED_STEPS`, one sample for each of the two guidance passes.

    The prompts are one batch; each seed is a run of its own.
    """
    from diffattn.analysis.capture import capture

    pipe = load()
    for seed in range(seeds):
        with capture(pipe, keep=lambda layer, step: step in CAPTURED_STEPS) as calls:
            run(pipe, PROMPTS, seed, output_type="latent")
        for call in calls:
            labels = {"seed": seed, "layer": call.layer, "step": call.step}
            yield Sample(call.grid, call.query, call.key, call.value, call.layer, labels)
