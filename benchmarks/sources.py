"""Where queries, keys and values of a study come from: made up with a seed, or captured from a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffattn import TokenGrid
from diffattn.synthetic import structured_qkv


@dataclass(frozen=True)
class Sample:
    """One attention call: `(B, S, H, D)` tensors, the grid they lie on, and the layer they belong to."""

    name: str
    grid: TokenGrid
    query: Tensor
    key: Tensor
    value: Tensor
    layer: int = 0


def synthetic(grid: TokenGrid, seeds: int) -> Iterator[Sample]:
    """One sample of four heads for each seed."""
    for seed in range(seeds):
        yield Sample(f"synthetic {grid}, seed {seed}", grid, *structured_qkv(grid, seed=seed), layer=seed)


def captured(folder: Path) -> Iterator[Sample]:
    """The `*.safetensors` files of a folder, in order of their names.

    Each holds `query`, `key` and `value`, `(B, S, H, D)` after norm and RoPE, and in its metadata `frames`, `height`,
    `width` and, where they are not 0, `text`, `text_first` and `layer`.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            about = {name: int(value) for name, value in (file.metadata() or {}).items()}
            tensors = [file.get_tensor(name).float() for name in ("query", "key", "value")]
        layer, text_first = about.pop("layer", 0), bool(about.pop("text_first", 0))
        yield Sample(path.stem, TokenGrid(**about, text_first=text_first), *tensors, layer=layer)
