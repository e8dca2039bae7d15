"""What is perturbed in one transformer, and how."""

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
        """Place of the first block that is not as in the unperturbed pass, None where blocks beside it are not."""
        touched = {model.block_of(layer) for layer in self.strengths} | set(self.skipped)
        if not touched or touched & set(model.branches):
            return None
        return min(model.blocks.index(block) for block in touched)

    @property
    def samples(self) -> int:
        """For how many samples heads were chosen; 1 where all samples are alike."""
        return max((strengths.samples for strengths in self.strengths.values()), default=1)

    def beside_others(self, samples: int, first: bool) -> Selection:
        """For the first, or else the last, half of a batch of twice as many samples."""
        strengths = {layer: values.beside_others(samples, first) for layer, values in self.strengths.items()}
        return replace(self, strengths=strengths, skipping=(first,) * samples + (not first,) * samples)


def make_selection(
    model: ModelMap,
    values: dict[str, Tensor],
    skip_blocks: Iterable[str] = (),
    target: str = "identity",
    rows: str = "all",
) -> Selection:
    """From u `(B|1, H)` by layer, in the order of the model's layers; layers that are all 0 are left out."""
    by_layer = {layer: Strengths(values[layer]) for layer in model.layers if layer in values}
    kept = {layer: strengths for layer, strengths in by_layer.items() if strengths}
    return Selection(kept, tuple(skip_blocks), target, rows)
