"""What diffattn has to know about a transformer class, and finding it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._compat import unwrap_module

ALL_BEFORE, NO_OTHERS = -1, -2  # instead of a number of tokens before the grid
BEFORE = {"before": ALL_BEFORE, "after": 0, "none": NO_OTHERS}


class NoGrid(Exception):
    """Raised by `Adapter.grid` where tokens are not a grid; its text is the reason that `summary` counts."""


@dataclass(frozen=True)
class Adapter:
    """A transformer family: which attention is served, where its tokens sit, how its masks arrive.

    Args:
        model (`str`): name of the diffusers class; its subclasses are served too.
        attention (`Callable`): from the model to the qualified names of its self-attention modules over visual
            tokens, in the order in which `Schedule.dense_layers` counts them.
        grid (`Callable`): from the model and the keyword arguments of its forward to `(frames, height, width)` in
            tokens; an image has one frame. Raises [`NoGrid`] where there is none.
        others (`str` or `Callable`, *optional*, defaults to `"none"`): where the tokens of the sequence that are not
            on the grid sit (text, reference images, history, padding): `"before"` or `"after"` the visual ones, or,
            where both occur, a function of the model and the inputs that counts those before.
        seam (`str`, *optional*, defaults to `"backend"`): how the processor reaches attention: the dispatcher with a
            `"backend"` of its own, the dispatcher with the `"active"` backend of the process, or `"sdpa"`, torch's
            function, called with `(B, H, S, D)`.
        mask (`str`, *optional*, defaults to `"keys"`): what a boolean mask means: `"keys"` that nobody sees,
            the outer `"product"` of such a mask with itself, or samples `"packed"` at different places.
        shards (`str`, *optional*, defaults to `"unknown"`): how context parallelism cuts a sequence that has other
            tokens: `"whole"`, or text and visual tokens each on their own, as `"streams"`.
        processor (`Callable`, *optional*): from the model's processor class to a subclass to run in its stead.
        tested (`tuple[str, ...]`, *optional*): what the tests run beside the plain class: variants whose sequences
            differ, and `"pipeline"`, a complete one.
        branches (`tuple[str, ...]`, *optional*): lists of blocks beside the main ones, which use what they return.
    """

    model: str
    attention: Callable[[nn.Module], list[str]]
    grid: Callable[[nn.Module, dict], tuple[int, int, int]]
    others: str | Callable[[nn.Module, dict], int] = "none"
    seam: str = "backend"
    mask: str = "keys"
    shards: str = "unknown"
    processor: Callable[[type], type] | None = None
    branches: tuple[str, ...] = ()
    tested: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`"video"` or `"image"`, a grid of one frame."""
        return "image" if self.model.endswith("2DModel") else "video"

    def tokens_before(self, model: nn.Module, inputs: dict) -> int:
        """How many tokens come before the visual ones, as [`~integration.placement.place`] takes it."""
        return self.others(model, inputs) if callable(self.others) else BEFORE[self.others]


class Blocks:
    """An `Adapter.attention`: lists of blocks and the attention in each block, names separated by spaces."""

    def __init__(self, **attention: str) -> None:
        self.places = [(stack, name) for stack, names in attention.items() for name in names.split()]

    def __call__(self, model: nn.Module) -> list[str]:
        return [
            f"{stack}.{index}.{name}"
            for stack, name in self.places
            for index, block in enumerate(getattr(model, stack))
            if _has(block, name)
        ]

    def __str__(self) -> str:
        return ", ".join(f"{stack}.*.{name}" for stack, name in self.places)


def _has(block: nn.Module, name: str) -> bool:
    for part in name.split("."):
        block = getattr(block, part, None)
    return block is not None


_ADAPTERS: dict[str, Adapter] = {}


def register(adapter: Adapter) -> Adapter:
    """Make a family known."""
    _ADAPTERS[adapter.model] = adapter
    return adapter


def supported_models() -> list[str]:
    """Names of the transformer classes served."""
    return sorted(_ADAPTERS)


def adapter_named(model: str) -> Adapter:
    """The adapter of a class, by name."""
    return _ADAPTERS[model]


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
