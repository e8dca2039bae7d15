"""Inputs and outputs of transformer blocks, and blocks that are skipped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import block_outputs

Tree = Any
STATES = ("hidden_states", "encoder_hidden_states", "audio_hidden_states")


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """A tree of tuples, lists and dicts with `function` applied to every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(function, part) for part in tree)
    if isinstance(tree, dict):
        return {name: map_tensors(function, part) for name, part in tree.items()}
    return tree


def take_samples(tree: Tree, batch: int, samples: slice) -> Tree:
    """A tree with some samples of every tensor whose first dimension is the batch, of `batch` samples."""
    return map_tensors(lambda tensor: tensor[samples] if tensor.ndim and len(tensor) == batch else tensor, tree)


def without_memory(tree: Tree) -> Tree:
    """Zeros of the same shapes that take no memory."""
    return map_tensors(lambda tensor: tensor.new_zeros(()).expand(tensor.shape), tree)


class Skip:
    """A skipped block: it returns its inputs, in the order of its outputs.

    Args:
        block (`nn.Module`): to be skipped. It runs once, where diffusers does not know what it returns.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.names = list(inspect.signature(type(block).forward).parameters)[1:]
        self.order: Any = None

    def skipped_forward(self, forward: Callable, active: Sequence[bool] | None = None) -> Callable:
        """A forward that skips the block for the active samples; the others run it."""

        def run(*args, **kwargs):
            inputs = {**dict(zip(self.names, args)), **kwargs}
            every = active is None or all(active)
            output = None if every and self.order is not None else forward(*args, **kwargs)
            if self.order is None:
                self.order = self._order(inputs, output)
            through = _in_order(self.order, inputs)
            return through if every else _blend(active, through, output)

        return run

    def _order(self, inputs: dict, output: Tree) -> Any:
        """Names of the inputs to return, in the order of the outputs."""
        names = STATES if STATES[0] in inputs else self.names  # of blocks with names of their own
        states = [name for name in names if isinstance(inputs.get(name), Tensor)]
        if isinstance(output, Tensor):
            return states[0]
        known = block_outputs(type(self.block))
        if known is not None and len(known) == len(output):
            return tuple(None if part is None else STATES[which] for which, part in zip(known, output))
        return tuple(None if part is None else self._of_shape(inputs, states, part.shape) for part in output)

    def _of_shape(self, inputs: dict, states: list[str], shape: torch.Size) -> str:
        found = [name for name in states if inputs[name].shape == shape]
        if len(found) != 1:
            raise NotImplementedError(
                f"{type(self.block).__name__} cannot be skipped: its outputs do not tell which input is which"
            )
        return found[0]


def _in_order(order: Any, inputs: dict) -> Tree:
    """Inputs by name, in the order of a block's outputs."""
    if isinstance(order, tuple):
        return tuple(None if name is None else inputs[name] for name in order)
    return inputs[order]


def _blend(active: Sequence[bool], through: Tree, output: Tree) -> Tree:
    if isinstance(output, tuple):
        return tuple(_blend(active, *parts) for parts in zip(through, output))
    if output is None:
        return None
    chosen = torch.tensor(active, device=output.device).view(-1, *(1,) * (output.ndim - 1))
    return torch.where(chosen, through, output)
