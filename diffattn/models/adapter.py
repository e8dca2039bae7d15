"""What diffattn has to know about a transformer class, and finding it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._compat import unwrap_module


@dataclass(frozen=True)
class Adapter:
    """A transformer family.

    Args:
        model (`str`): name of the diffusers class; its subclasses are served too.
        attention (`Callable`): from the model to the qualified names of its self-attention modules over visual
            tokens, in the order they run.
        grid (`Callable`): from the model and the keyword arguments of its forward to `(frames, height, width)` in
            tokens.
        text_first (`bool`): whether text tokens of the same sequence come before the visual ones.
    """

    model: str
    attention: Callable[[nn.Module], list[str]]
    grid: Callable[[nn.Module, dict], tuple[int, int, int]]
    text_first: bool = False


_ADAPTERS: dict[str, Adapter] = {}


def register(adapter: Adapter) -> Adapter:
    """Make a family known."""
    _ADAPTERS[adapter.model] = adapter
    return adapter


def supported_models() -> list[str]:
    """Names of the transformer classes served."""
    return sorted(_ADAPTERS)


def find_adapter(module: object) -> Adapter | None:
    """The adapter of a transformer, or None."""
    classes = type(unwrap_module(module)).__mro__
    return next((_ADAPTERS[cls.__name__] for cls in classes if cls.__name__ in _ADAPTERS), None)


def adapter_for(module: object) -> Adapter:
    """The adapter of a transformer; a TypeError that names what is supported where there is none."""
    adapter = find_adapter(module)
    if adapter is None:
        raise TypeError(
            f"diffattn cannot serve {type(module).__name__}: give it a diffusers pipeline, or one of the transformers "
            f"{', '.join(supported_models())}"
        )
    return adapter
