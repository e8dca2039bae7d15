"""Where the heads of a transformer are: self-attention layers, their heads, the blocks they belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from ..models.adapter import adapter_for


@dataclass(frozen=True)
class ModelMap:
    """Names of a transformer's self-attention layers and blocks.

    Args:
        model (`str`): name of the class.
        layers (`dict[str, int]`): qualified name of each self-attention module and its number of heads, in the order
            in which they are counted; FLUX counts its double-stream blocks first, as in arXiv 2506.10978.
        blocks (`tuple[str, ...]`): qualified names of the blocks, in the order in which they run.
        branches (`tuple[str, ...]`): blocks beside these, see [`Adapter`].
    """

    model: str
    layers: dict[str, int]
    blocks: tuple[str, ...]
    branches: tuple[str, ...]

    def block_of(self, layer: str) -> str:
        """The block that an attention module is in."""
        return block_name(layer)

    def layers_of(self, block: str) -> list[str]:
        """The self-attention modules of a block."""
        return [layer for layer in self.layers if self.block_of(layer) == block]

    def describe(self) -> str:
        """Valid layers and heads, for messages."""
        names, heads = list(self.layers), sorted(set(self.layers.values()))
        counts = f"heads 0..{heads[0] - 1}" if len(heads) == 1 else f"{heads[0]} to {heads[-1]} heads"
        return f"{self.model} has layers 0..{len(names) - 1} ({_span(names)}), each with {counts}"


def map_model(transformer: nn.Module) -> ModelMap:
    """The map of a supported transformer."""
    adapter = adapter_for(transformer)
    names = adapter.attention(transformer)
    blocks = list(dict.fromkeys(map(block_name, names)))
    beside = tuple(block for block in blocks if block.split(".")[0] in adapter.branches)
    layers = {name: _heads(transformer.get_submodule(name)) for name in names}
    main = tuple(block for block in blocks if block not in beside)
    return ModelMap(type(transformer).__name__, layers, main, beside)


def block_name(layer: str) -> str:
    """The name of the block that an attention module is in: up to the first number."""
    return re.match(r".*?\.\d+", layer)[0]


def _heads(attention: nn.Module) -> int:
    names = ("heads", "num_heads", "num_attention_heads")
    return next(getattr(attention, name) for name in names if hasattr(attention, name))


def _span(names: list[str]) -> str:
    stacks = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in names)
    return ", ".join(stacks)
