"""What diffattn did, as text to paste into an issue."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from ..attention_config import AttentionConfig
from ..guidance.describe import describe_guidance, guidance_line
from ..guidance.guidance_hook import find_guidance
from ..guidance.nag.apply import describe_nag, nag_line
from ..guidance.nag.hook import find_nag
from ..integration.apply import find_transformers
from ..integration.hook import find_hook
from ..integration.layer import Layer
from ..integration.session import SparseSession
from ..kernels.attend import choose_impl
from ..methods import CalibratedConfig

PACKAGES = ("diffattn", "diffusers", "transformers", "torch", "triton")


@dataclass(frozen=True)
class ModelSummary:
    """One transformer: its class and what happened in its layers."""

    model: str
    layers: list[Layer]
    expected: list[float | None] | None = None  # density of each layer, by a calibration

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for layer, expected in zip(self.layers, self.expected or [None] * len(self.layers)):
            groups.setdefault(_describe_layer(layer, expected), []).append(layer.name)
        lines = [f"  {_span(names)}: {text}" for text, names in groups.items()]
        return "\n".join([f"{self.model}, {len(self.layers)} self-attention layers", *lines])


@dataclass(frozen=True)
class Summary:
    """What [`summary`] returns: `print` it, or take `to_dict()`."""

    models: list[ModelSummary]
    session: SparseSession | None
    device: torch.device
    guidance: list[dict] = field(default_factory=list)
    nag: list[dict] = field(default_factory=list)

    @property
    def density(self) -> float | None:
        """Mean share of the products between visual tokens in the sparse calls, None before the first."""
        return _mean([(layer.density, layer.sparse_calls) for layer in self._layers() if layer.sparse_calls])

    @property
    def computed(self) -> float | None:
        """Mean share of all products in the sparse calls, text included."""
        return _mean([(layer.computed, layer.sparse_calls) for layer in self._layers() if layer.sparse_calls])

    @property
    def attention_computed(self) -> float | None:
        """Share of the dense self-attention products computed in all calls, dense ones included."""
        calls = [(layer.computed, layer.sparse_calls) for layer in self._layers() if layer.sparse_calls]
        return _mean(calls + [(1.0, layer.dense_calls.total()) for layer in self._layers()])

    def to_dict(self) -> dict:
        """JSON-ready values."""
        guided = {name: about for name in ("guidance", "nag") if (about := getattr(self, name))}
        if self.session is None:
            return {"enabled": False, **guided, "versions": versions()}
        dense = sum((layer.dense_calls for layer in self._layers()), Counter())
        return {
            "enabled": True,
            "models": [model.model for model in self.models],
            "config": self.session.config.to_dict(),
            "schedule": self.session.schedule.to_dict(),
            "impl": self._impl()[0],
            "grid": None if self.session.grid is None else str(self.session.grid),
            "tokens": None if self.session.grid is None else self.session.grid.tokens,
            "sparse_calls": sum(layer.sparse_calls for layer in self._layers()),
            "dense_calls": dict(dense),
            "density": self.density,
            "computed": self.computed,
            "kept_plan_bytes": self.session.plans.bytes_kept(),
            "most_run_plan_bytes": self.session.plans.kept.most_bytes,
            "attention_computed": self.attention_computed,
            **guided,
            "versions": versions(),
        }

    def __str__(self) -> str:
        guided = [f"guidance  {guidance_line(about)}" for about in self.guidance]
        guided += [f"guidance  {nag_line(about)}" for about in self.nag]
        if self.session is None:
            return "\n".join([*guided, f"diffattn is not enabled{', attention is dense' if guided else ''}"])
        values = self.to_dict()
        lines = [
            f"method    {self.session.config.describe()}",
            f"schedule  {self.session.schedule}",
            f"impl      {self._impl()[0]} ({self._impl()[1]})",
            f"grid      {values['grid'] or 'not run yet'}, {values['tokens'] or 'unknown'} tokens",
            f"density   {_percent(self.density)} of the products between visual tokens in sparse calls",
            *_describe_expected(self.session.config, self.density),
            f"computed  {_percent(self.computed)} of all products in sparse calls, "
            f"{_percent(self.attention_computed)} over all calls",
            f"plans     {_describe_plans(values)}",
            *guided,
            *map(str, self.models),
            "versions  " + ", ".join(f"{name} {version}" for name, version in values["versions"].items()),
        ]
        return "\n".join(lines)

    def _layers(self) -> list[Layer]:
        return [layer for model in self.models for layer in model.layers]

    def _impl(self) -> tuple[str, str]:
        return (self.session.impl, "asked for") if self.session.impl != "auto" else choose_impl(self.device)


def summary(pipe: Any) -> Summary:
    """Method, grid, density by layer, dense calls with their reasons, guidance, implementation and versions.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what [`enable`] or [`guide`] was given.

    Raises:
        TypeError: `pipe` has no supported transformer.
    """
    models, session = [], None
    transformers = find_transformers(pipe)
    for transformer in transformers:
        hook = find_hook(transformer)
        if hook is not None:
            session = hook.handler
            layers = [ours.layer for _, ours in hook.processors]
            expected = _expected(getattr(session, "config", None)).get("layers")
            models.append(ModelSummary(type(transformer).__name__, layers, expected))
    guides = [describe_guidance(hook) for hook in map(find_guidance, transformers) if hook is not None]
    nag = [describe_nag(hook) for hook in map(find_nag, transformers) if hook is not None]
    return Summary(models, session, next(transformers[0].parameters()).device, guides, nag)


def versions() -> dict[str, str]:
    """Versions of the packages that the result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _expected(config: AttentionConfig | None) -> dict[str, Any]:
    return config.expected if isinstance(config, CalibratedConfig) else {}


def _describe_expected(config: AttentionConfig, reached: float | None) -> list[str]:
    """What a calibration promised beside what was reached."""
    expected = _expected(config)
    if "error" not in expected:
        return []
    return [
        f"expected  density {_percent(expected['density'])} (reached: {_percent(reached)}), error of the result "
        f"{expected['error']:.3g}, {expected['least_error']:.3g} to {expected['most_error']:.3g} on the "
        f"{config.measured['prompts']} prompts of the calibration ({expected['uniform_error']:.3g} uncalibrated)"
    ]


def _describe_layer(layer: Layer, expected: float | None) -> str:
    parts = []
    if layer.sparse_calls:
        text = "" if layer.computed == layer.density else f" ({layer.computed:.3f} of all products)"
        promised = "" if expected is None else f" (expected {expected:.3f})"
        parts.append(f"density {layer.density:.3f}{promised}{text} in {layer.sparse_calls} calls")
    parts += [f"{count} dense ({reason})" for reason, count in layer.dense_calls.items()]
    return ", ".join(parts) or "not run yet"


def _describe_plans(values: dict) -> str:
    kept, most = (values[name] / 2**20 for name in ("kept_plan_bytes", "most_run_plan_bytes"))
    within = f", at most {most:.1f} MB in a run for {values['schedule']['refresh']} steps each" if most else ""
    return f"{kept:.1f} MB kept{within}"


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)})"


def _mean(weighted: list[tuple[float, int]]) -> float | None:
    values = {value for value, weight in weighted if weight}
    if len(values) == 1:
        return values.pop()  # as it is, without rounding
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total else None


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
