"""One self-attention module of a model and what happened in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..kernels.plan.plan import Plan


@dataclass
class Layer:
    """Counts of one layer.

    Args:
        name (`str`): qualified name of the attention module.
        index (`int`): place among the self-attention layers of the model.
        dense (`bool`): whether the schedule keeps it dense.
        off (`bool`): whether diffattn was disabled since; a processor may outlive that, in a list of saved ones.
        held (`bool`): whether this step is dense in it, for whatever reason; all that compiled graphs look at.
    """

    name: str
    index: int
    dense: bool
    off: bool = False
    held: bool = False
    plan: Plan | None = None
    sparse_calls: int = 0
    dense_calls: Counter = field(default_factory=Counter)

    def count_dense(self, reason: str) -> None:
        """Note one dense call."""
        self.dense_calls[reason] += 1
