"""A method with a density of its own for every head, layer and part of the run, as `diffattn.calibrate` finds them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..attention_config import AttentionConfig, check_density, register_saved
from ..grid import TokenGrid
from ..kernels.plan.join_heads import join_heads
from ..kernels.plan.plan import Plan
from ..schedule import Schedule
from ._check import check_shares

Densities = tuple[tuple[tuple[float, ...] | None, ...], ...]


@register_saved
@dataclass(frozen=True)
class CalibratedConfig(AttentionConfig):
    """Another method, whose density differs by head, layer and part of the run; [`calibrate`] makes it.

    Where the step is not known, a head has the mean of its densities over the parts.

    Args:
        base ([`AttentionConfig`] or `dict`): the method, or what its `to_dict` gives; dynamic, with a `density`.
        densities (`tuple`): `[part][layer][head]`; None for layers that were dense while this was measured.
        ends (`tuple[float, ...]`): where each part ends, as a share of the steps of the run; the last is 1.
        model (`str`): class of the transformer that it is for.
        measured (`dict`): what it was measured on; `method` is the base then.
        expected (`dict`): density and error to expect, see [`calibrate`].

    Raises:
        ValueError: fields that do not fit each other, or densities that were measured with another method.
    """

    base: AttentionConfig | dict
    densities: Densities
    ends: tuple[float, ...]
    model: str
    measured: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    method: ClassVar[str] = "calibrated"
    dynamic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.base, dict):
            object.__setattr__(self, "base", AttentionConfig.from_dict(self.base))
        check_base(self.base)
        object.__setattr__(self, "densities", _as_tuples(self.densities))
        check_shares("ends", self.ends, len(self.densities), "parts")
        self._check_densities()
        for name in ("measured", "expected"):
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))
        measured = self.measured.get("method")
        if measured is not None and AttentionConfig.from_dict({**measured, "density": self.base.density}) != self.base:
            raise ValueError(f"these densities were measured with {measured}, they do not fit {self.base.to_dict()}")

    def _check_densities(self) -> None:
        shapes = {tuple(None if heads is None else len(heads) for heads in part) for part in self.densities}
        if len(shapes) != 1 or self.ends[-1] != 1:
            raise ValueError("every part needs densities of the same layers and heads, and the last part ends at 1")
        for heads in (heads for part in self.densities for heads in part if heads is not None):
            for density in heads:
                if density is None:
                    raise ValueError("a head has no density")
                check_density(density)

    @property
    def wants_value(self) -> bool:
        """That of the base."""
        return self.base.wants_value

    @property
    def plans_references(self) -> bool:
        """That of the base."""
        return self.base.plans_references

    @property
    def layers(self) -> int:
        """Self-attention layers of the model."""
        return len(self.densities[0])

    @property
    def schedule(self) -> Schedule | None:
        """Dense steps and layers of the calibration, which go with it."""
        saved = self.measured.get("schedule")
        return None if saved is None else Schedule(**saved)

    def save_pretrained(self, folder: str | os.PathLike, schedule: Schedule | None = None) -> None:
        super().save_pretrained(folder, schedule or self.schedule)

    def densities_at(self, layer: int, step: int | None = None, steps: int | None = None) -> tuple[float, ...]:
        """The density of every head of a layer, in a step if one is given."""
        found = [part[layer] for part in self.densities]
        if found[0] is None:
            raise ValueError(f"layer {layer} was dense in the calibration, it has no density")
        if step is None or steps is None:
            return tuple(sum(of_head) / len(found) for of_head in zip(*found))
        return found[next(part for part, end in enumerate(self.ends) if step + 0.5 < end * steps or end == 1)]

    def to_dict(self) -> dict:
        values = {name: value for name, value in vars(self).items() if name not in ("base", "handle")}
        return {"method": self.method, "base": self.base.to_dict(), **values}

    def describe(self) -> str:
        heads = next(len(heads) for heads in self.densities[0] if heads is not None)
        parts = f"{len(self.densities)} parts x {self.layers} layers x {heads} heads of {self.model}"
        return f"{self.base.describe()}, calibrated for {parts}"

    def _plan(
        self, *, grid: TokenGrid, query: Tensor, key: Tensor, value: Tensor | None, layer: int,
        step: int | None, steps: int | None,
    ) -> Plan:  # fmt: skip
        densities = self.densities_at(layer, step, steps)
        if len(densities) != query.shape[2]:
            raise ValueError(f"the calibration has {len(densities)} heads in layer {layer}, not {query.shape[2]}")
        heads_of: dict[float, list[int]] = {}
        for head, density in enumerate(densities):
            heads_of.setdefault(density, []).append(head)
        rest = {"grid": grid, "layer": layer, "step": step, "steps": steps}

        def plan(density: float, heads: list[int]) -> Plan:
            tensors = {"query": query, "key": key, "value": value}
            own = {name: None if x is None else _take(x, heads, len(densities)) for name, x in tensors.items()}
            return replace(self.base, density=density)._plan(**own, **rest)

        return join_heads([plan(*group) for group in heads_of.items()], list(heads_of.values()))


def check_base(base: Any) -> None:
    """Raise unless the heads of a method may have densities of their own."""
    if not isinstance(base, AttentionConfig):
        raise TypeError(f"the method must be an AttentionConfig, got {type(base).__name__}")
    if not base.dynamic or not base.density_by_head or not hasattr(base, "density"):
        raise ValueError(
            f"{base.method!r} cannot be calibrated: its heads cannot have densities of their own; auto, pyramid, "
            "rectified and sol can"
        )


def _take(tensor: Tensor, heads: list[int], total: int) -> Tensor:
    """`(B, S, h, D)`, some of `total` query heads, or the key heads that these look at; all of them as they are."""
    if len(heads) == total:
        return tensor
    queries_per_key = total // tensor.shape[2]
    return tensor[:, :, torch.tensor(heads, device=tensor.device) // queries_per_key]


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value
