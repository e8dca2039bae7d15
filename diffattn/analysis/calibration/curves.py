"""From what was measured to the error of the result that every head makes at every density."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .settings import Layout
from .work import Measured


def sensitivities(measured: Measured, layout: Layout) -> np.ndarray:
    """`(parts, layers, heads)`, squared change of the prediction per squared error of the output of a head."""
    found = np.zeros((len(layout.parts), len(layout.layers), layout.heads))
    for part, layer, heads, moved, error in measured.probes:
        found[part, layout.layers.index(layer), heads] = moved / error if error > 0 else 0.0
    return found


def error_curves(measured: Measured, layout: Layout, reference: int) -> np.ndarray:
    """`(parts, layers, heads, candidates)`, squared relative error of the result.

    The error of a head's output, times the sensitivity of the prediction to it, is its share in the error of its part
    of the run. The sum of a part, at the density of the reference, is what a run with this part sparse measured.

    Args:
        measured ([`Measured`]): of one prompt.
        layout ([`Layout`]): its steps and layers.
        reference (`int`): number of the candidate that probes and parts ran at.
    """
    moved = measured.errors.transpose(0, 1, 3, 2) * sensitivities(measured, layout)[..., None]
    total = moved[..., reference].sum((1, 2))
    return moved * (np.array(measured.part_errors) / np.maximum(total, np.finfo(float).tiny))[:, None, None, None]


def mean_curves(every: Sequence[Measured], layout: Layout, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Cost and error `(N, candidates + 1)` of N heads, means over the prompts; the last column is dense."""
    error = np.mean([error_curves(measured, layout, reference) for measured in every], 0)
    reached = np.mean([measured.reached for measured in every], 0)[:, :, None]
    cost = np.broadcast_to(reached, error.shape)
    return tuple(
        np.append(table.reshape(-1, table.shape[-1]), np.full((table[..., 0].size, 1), dense), 1)
        for table, dense in ((cost, 1.0), (error, 0.0))
    )


def weights(layout: Layout) -> np.ndarray:
    """`(N,)`, the share of each head in the mean density: parts count by their steps."""
    steps = np.repeat([len(part) for part in layout.parts], len(layout.layers) * layout.heads)
    return steps / steps.sum()
