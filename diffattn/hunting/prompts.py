"""Pairs of a prompt and a seed, on which every candidate is tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .log import fingerprint


@dataclass(frozen=True)
class PromptSeed:
    """A prompt, or other inputs of a pipeline, and the seed of its noise.

    Args:
        inputs (`dict`): of the pipeline, for one sample: `{"prompt": ...}`, images, or embeddings `(1, ...)`.
        seed (`int`): same seed, same noise, for every candidate.
    """

    inputs: dict[str, Any]
    seed: int

    @property
    def prompt(self) -> str:
        """The prompt that the objective is given; empty where only embeddings were given."""
        return self.inputs.get("prompt", "")

    def batch(self, size: int) -> dict[str, Any]:
        """Arguments of the pipeline for `size` samples that start from the same noise."""
        generators = [torch.Generator("cpu").manual_seed(self.seed) for _ in range(size)]
        return {name: _repeat(value, size) for name, value in self.inputs.items()} | {"generator": generators}

    def fingerprint(self) -> str:
        """A short hash of the inputs."""
        return fingerprint({name: describe(value) for name, value in self.inputs.items()})


def make_pairs(prompts: Iterable[str | dict], seeds: Sequence[int] | None = None) -> list[PromptSeed]:
    """One pair for every prompt.

    Args:
        prompts (`list`): each a string or a dict of inputs of the pipeline.
        seeds (`list[int]`, *optional*): one for each prompt; 0, 1, 2, ... by default, as in arXiv 2506.10978.
    """
    if isinstance(prompts, (str, dict)):
        raise TypeError(f"prompts must be a list, got one {type(prompts).__name__}")
    prompts = list(prompts)
    wrong = [prompt for prompt in prompts if not isinstance(prompt, (str, dict)) or not prompt]
    if wrong or not prompts:
        got = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"prompts must be strings or dicts of pipeline inputs, got {got}")
    seeds = list(range(len(prompts)) if seeds is None else seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"seeds must be as many as prompts, one for each: got {len(seeds)} and {len(prompts)}")
    return [PromptSeed({"prompt": p} if isinstance(p, str) else dict(p), int(seed)) for p, seed in zip(prompts, seeds)]


def describe(value: Any) -> Any:
    """A JSON-ready value that differs where inputs differ."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {fingerprint(data)}"
    if isinstance(value, (list, tuple)):
        return [describe(part) for part in value]
    if isinstance(value, dict):
        return {str(name): describe(part) for name, part in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if hasattr(value, "tobytes"):
        return f"{type(value).__name__} {fingerprint(value.tobytes())}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _repeat(value: Any, size: int) -> Any:
    if isinstance(value, str):
        return [value] * size
    return value.repeat_interleave(size, 0) if isinstance(value, Tensor) else value
