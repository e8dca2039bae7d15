"""Blocks and attention modules that one thread runs differently, while every other thread runs them as they are.

They are replaced within a pass and restored after it, so that nothing stays in the way of others who wrap forwards
and replace processors: offload, step caches, layerwise casting, sparse attention.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..integration.processors import set_processor
from ..models.adapter import Adapter
from .guided_processor import Act, GuidedProcessorMixin, ThreadAct, Wrap, guided_processor
from .per_thread import PerThread

_replacing = threading.Lock()  # held while something is put in place or restored, not while it runs


class _Override(PerThread):
    def __init__(self) -> None:
        self.forward: Callable | None = None


class OverriddenForward:
    """In the place of a block's forward: what this thread runs instead of it, or else the forward itself."""

    def __init__(self, forward: Callable, before: Any) -> None:
        self.forward, self.before = forward, before
        self.override, self.users = _Override(), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.override.forward or self.forward)(*args, **kwargs)


@contextmanager
def overridden_forward(block: nn.Module, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """Run `make(forward)` in place of the block's forward in this thread; of its compiled call where it has one."""
    name = "forward" if block._compiled_call_impl is None else "_compiled_call_impl"
    with _replacing:
        installed = vars(block).get(name)
        if not isinstance(installed, OverriddenForward):
            installed = OverriddenForward(getattr(block, name), before=installed)
            object.__setattr__(block, name, installed)
        installed.users += 1
    outer = installed.override.forward
    installed.override.forward = make(outer or installed.forward)
    try:
        yield
    finally:
        installed.override.forward = outer
        with _replacing:
            installed.users -= 1
            if not installed.users and vars(block).get(name) is installed:  # others may have replaced it since
                _restore(block, name, installed.before)


def _restore(block: nn.Module, name: str, before: Any) -> None:
    if before is None:
        object.__delattr__(block, name)
    else:
        object.__setattr__(block, name, before)


@contextmanager
def overridden_attention(attention: nn.Module, adapter: Adapter, act: Act) -> Iterator[None]:
    """Give the attention calls of an attention module to `act` in this thread."""
    with _guided(attention, adapter) as of_thread:
        outer, of_thread.act = of_thread.act, act
        try:
            yield
        finally:
            of_thread.act = outer


@contextmanager
def wrapped_attention(attention: nn.Module, adapter: Adapter, wrap: Wrap) -> Iterator[None]:
    """Let `wrap(call, act)` run the attention calls of an attention module in this thread, perturbed or not."""
    with _guided(attention, adapter) as of_thread:
        outer, of_thread.wrap = of_thread.wrap, wrap
        try:
            yield
        finally:
            of_thread.wrap = outer


@contextmanager
def _guided(attention: nn.Module, adapter: Adapter) -> Iterator[ThreadAct]:
    """A guided processor in place of the module's own."""
    with _replacing:
        processor = attention.processor
        if not isinstance(processor, GuidedProcessorMixin):
            processor = guided_processor(attention, adapter)
            set_processor(attention, processor)
        processor.users += 1
    try:
        yield processor.of_thread
    finally:
        with _replacing:
            processor.users -= 1
            if not processor.users and attention.processor is processor:
                set_processor(attention, processor.replaced)
