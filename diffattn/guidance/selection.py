"""The perturbed heads and skipped blocks of one transformer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from .model import ModelMap
from .strengths import Strengths


@dataclass(frozen=True)
class Selection:
    """Heads and blocks of one transformer.

    Args:
        strengths (`dict[str, Strengths]`): by name of the attention module; layers without a head are left out.
        skipped (`tuple[str, ...]`): blocks that are skipped.
        target (`str`): one of `TARGETS`.
        rows (`str`): one of `ROWS`.
        skipping (`tuple[bool, ...]`, *optional*): the samples that skip; all of them by default.
    """

    strengths: dict[str, Strengths] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    target: str = "identity"
    rows: str = "all"
    skipping: tuple[bool, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.strengths or self.skipped)

    def first_block(self, model: ModelMap) -> int | None:
        """Index of the first perturbed block; None if a block of a branch is perturbed."""
        touched = {model.block_of(layer) for layer in self.strengths} | set(self.skipped)
        if not touched or touched & set(model.branches):
            return None
        return min(model.blocks.index(block) for block in touched)

    @property
    def samples(self) -> int:
        """The number of samples with heads of their own; 1 if all samples have the same heads."""
        return max((strengths.samples for strengths in self.strengths.values()), default=1)

    def beside_others(self, samples: int, first: bool) -> Selection:
        """The same for the first (or else the last) half of a batch of twice as many samples."""
        strengths = {layer: values.beside_others(samples, first) for layer, values in self.strengths.items()}
        return replace(self, strengths=strengths, skipping=(first,) * samples + (not first,) * samples)


def make_selection(
    model: ModelMap,
    values: dict[str, Tensor],
    skip_blocks: Iterable[str] = (),
    target: str = "identity",
    rows: str = "all",
) -> Selection:
    """A selection from u `(B|1, H)` by layer; layers in which u is 0 everywhere are left out."""
    by_layer = {layer: Strengths(values[layer]) for layer in model.layers if layer in values}
    kept = {layer: strengths for layer, strengths in by_layer.items() if strengths}
    return Selection(kept, tuple(skip_blocks), target, rows)
