"""What diffattn has to know about a transformer class, and how it finds that by the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .._compat import unwrap_module

ALL_BEFORE, NO_OTHERS = -1, -2  # in place of a count: all tokens that are not on the grid, or none allowed
TOKENS_BEFORE_GRID = {"before": ALL_BEFORE, "after": 0, "none": NO_OTHERS}


class NoGrid(Exception):
    """Raised by `Adapter.grid` where the tokens form no grid; `summary` counts its text as the reason."""


@dataclass(frozen=True)
class Adapter:
    """A transformer family: its self-attention layers, where its tokens sit and how its masks arrive.

    Args:
        model (`str`): name of the diffusers class; its subclasses are supported too.
        attention (`Callable`): from the model to the qualified names of its self-attention modules over visual
            tokens, in the order in which `Schedule.dense_layers` counts them.
        grid (`Callable`): from the model and the keyword arguments of its forward to `(frames, height, width)` in
            tokens; an image has one frame. Raises [`NoGrid`] where there is none.
        other_tokens (`str` or `Callable`, *optional*, defaults to `"none"`): where the sequence holds tokens that are
            not on the grid (text, reference images, history, padding): `"before"` or `"after"` the visual ones, or,
            where both occur, a function of the model and the inputs that counts those before.
        attention_call (`str`, *optional*, defaults to `"processor_backend"`): how the processor computes attention:
            by diffusers' dispatcher, with the backend of the processor or with the `"active_backend"` of the process,
            or by `"torch"`'s function, with `(B, H, S, D)`.
        mask (`str`, *optional*, defaults to `"keys"`): what a boolean mask means: `"keys"` that no query sees,
            the outer `"product"` of such a mask with itself, `"segments"` that see themselves only, of which the last
            token's is the sample and the others padding, or samples `"packed"` at different places.
        parallel_split (`str`, *optional*, defaults to `"unknown"`): how context parallelism cuts a sequence that has
            other tokens: the whole `"sequence"` at once, or its `"streams"`, text and visual tokens, each on its own.
        keys_alone (`str`, *optional*): where the keys of a call have tokens without queries, text or earlier frames:
            `"before"` or `"after"` the tokens that have both.
        tile (`Callable`, *optional*): from the model and the inputs to frames, height and width of the tiles that
            follow each other in the sequence; one token by default, which is raster order.
        references (`Callable`, *optional*): from the model and the inputs to the sizes of further grids that follow
            the first in the sequence: reference images, layers. None by default.
        replaceable_pattern (`bool`, *optional*, defaults to `False`): whether the block masks of the model are a way
            to save time, which methods may replace; others are always obeyed.
        processor (`Callable`, *optional*): from the model's processor class to a subclass that runs in its place.
        tested (`tuple[str, ...]`, *optional*): what the tests run beside the plain class: variants whose sequences
            differ, and `"pipeline"`, a complete one.
        branches (`tuple[str, ...]`, *optional*): lists of blocks whose outputs the main blocks use.
    """

    model: str
    attention: Callable[[nn.Module], list[str]]
    grid: Callable[[nn.Module, dict], tuple[int, int, int]]
    other_tokens: str | Callable[[nn.Module, dict], int] = "none"
    attention_call: str = "processor_backend"
    mask: str = "keys"
    parallel_split: str = "unknown"
    keys_alone: str | None = None
    tile: Callable[[nn.Module, dict], tuple[int, int, int]] = lambda model, inputs: (1, 1, 1)
    references: Callable[[nn.Module, dict], tuple[tuple[int, int, int], ...]] = lambda model, inputs: ()
    replaceable_pattern: bool = False
    processor: Callable[[type], type] | None = None
    branches: tuple[str, ...] = ()
    tested: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`"video"` or `"image"`, a grid of one frame."""
        return "image" if self.model.endswith("2DModel") else "video"

    def tokens_before_grid(self, model: nn.Module, inputs: dict) -> int:
        """How many tokens come before the visual ones, or `ALL_BEFORE` or `NO_OTHERS`, see [`placement.place`]."""
        if callable(self.other_tokens):
            return self.other_tokens(model, inputs)
        return TOKENS_BEFORE_GRID[self.other_tokens]


class Blocks:
    """An `Adapter.attention`, from lists of blocks and the attention modules of a block, names separated by spaces."""

    def __init__(self, attention: dict[str, str] | None = None, /, **more: str) -> None:
        attention = {**(attention or {}), **more}
        self.places = [(stack, name) for stack, names in attention.items() for name in names.split()]

    def __call__(self, model: nn.Module) -> list[str]:
        return [
            f"{stack}.{index}.{name}"
            for stack, name in self.places
            for index, block in enumerate(model.get_submodule(stack))
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
    """Add a family to the supported ones."""
    _ADAPTERS[adapter.model] = adapter
    return adapter


def supported_models() -> list[str]:
    """Names of the supported transformer classes."""
    return sorted(_ADAPTERS)


def adapter_named(model: str) -> Adapter:
    """The adapter of a class, by name."""
    return _ADAPTERS[model]


def find_adapter(module: object) -> Adapter | None:
    """The adapter of a transformer, or None."""
    return find_adapter_of(type(unwrap_module(module)))


def find_adapter_of(cls: type) -> Adapter | None:
    """The adapter of a class of transformers, or None."""
    return next((_ADAPTERS[each.__name__] for each in cls.__mro__ if each.__name__ in _ADAPTERS), None)


def adapter_for(module: object) -> Adapter:
    """The adapter of a transformer; a TypeError that names what is supported where there is none."""
    adapter = find_adapter(module)
    if adapter is None:
        raise TypeError(
            f"diffattn does not support {type(module).__name__}: give it a diffusers pipeline, or one of the "
            f"transformers {', '.join(supported_models())}"
        )
    return adapter
