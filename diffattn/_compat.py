"""Every private name of diffusers that diffattn touches, in one place: the same from diffusers 0.37 to 0.42."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import local
from types import FunctionType
from typing import Any

import diffusers
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks._helpers import AttentionProcessorRegistry, TransformerBlockRegistry
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.hooks.hooks import HookFunctionReference, StateManager
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.attention_dispatch import _templated_context_parallel_attention as context_parallel_attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.utils.torch_utils import unwrap_module
from packaging.version import Version
from torch import nn

try:
    from diffusers.hooks.hooks import CacheContext, _set_cache_context
except ImportError:  # before diffusers 0.41 a context was its name and nothing more
    CacheContext = str

    def _set_cache_context(module: nn.Module, context: str | None) -> None:
        HookRegistry.check_if_exists_or_initialize(module)._set_context(context)


__all__ = [
    "DTYPE",
    "AttentionBackendName",
    "CacheContextListener",
    "ContextParallelSplitHook",
    "block_outputs",
    "context_name",
    "apply_rotary_emb",
    "context_parallel_attention",
    "dispatch_attention_fn",
    "add_listener",
    "find_listener",
    "quiet_pipeline",
    "remove_listener",
    "register_backend",
    "register_processor",
    "renamed_context",
    "unwrap_module",
    "with_dispatcher",
]


# the argument of `from_pretrained` before and since
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


class _ThreadContext(StateManager):
    """The cache context of each thread."""

    def __init__(self) -> None:
        super().__init__(None)
        self._of_thread = local()

    def set_context(self, context: CacheContext | str | None) -> None:
        self._of_thread.context = context

    @property
    def known(self) -> CacheContext | str | None:
        return getattr(self._of_thread, "context", None)

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()


class CacheContextListener(ModelHook):
    """Hears what a pipeline says through `cache_context`, thread by thread.

    It sits in diffusers' registry of hooks because that is where contexts are announced, and does not wrap the
    forward of its module: accelerate and diffusers wrap it too, and lose each other's wrappers when they are taken
    off in another order than they were put on.
    """

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self._announced = _ThreadContext()

    @property
    def context(self) -> CacheContext | str | None:
        """The context this thread is in, None outside of one."""
        return self._announced.known

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


def add_listener(module: nn.Module, listener: CacheContextListener, name: str) -> None:
    """Register `listener` on a module without wrapping its forward."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.hooks[name] = listener
    # at the front: a hook that is removed hands its forward to the one after it, which must not be this one
    registry._hook_order.insert(0, name)
    registry._fn_refs.insert(0, HookFunctionReference())
    _forget_child_registries(registry)


def remove_listener(module: nn.Module, name: str) -> None:
    """Take a listener off a module."""
    registry = module._diffusers_hook
    place = registry._hook_order.index(name)
    del registry.hooks[name], registry._hook_order[place], registry._fn_refs[place]
    _forget_child_registries(registry)


def find_listener(module: nn.Module, name: str) -> CacheContextListener | None:
    """The listener of that name on a module, or None."""
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def _forget_child_registries(registry: HookRegistry) -> None:
    if hasattr(registry, "invalidate_child_registries_cache"):  # diffusers 0.41 and later keep a list
        registry.invalidate_child_registries_cache()


def register_backend(name: str, attention: Callable) -> AttentionBackendName:
    """A backend of our own that diffusers' dispatcher accepts, without adding it to the public list of names.

    The dispatcher wants an instance of its enum as the key of its table, and nothing more: the member is not entered
    into the enum, so that `set_attention_backend` neither offers nor accepts it.
    """
    member = str.__new__(AttentionBackendName, name)
    member._name_, member._value_ = name.upper(), name
    _AttentionBackendRegistry.register(member, supports_context_parallel=True)(attention)
    return member


def with_dispatcher(function: Callable, dispatch: Callable) -> Callable:
    """`function` of a diffusers module, calling `dispatch` wherever it calls `dispatch_attention_fn`.

    For processors that name no backend, and so take the one of the whole process, which is not ours to change.
    """
    if "dispatch_attention_fn" not in function.__code__.co_names:
        raise NotImplementedError(f"{function.__qualname__} does not call dispatch_attention_fn itself")
    names = {**function.__globals__, "dispatch_attention_fn": dispatch}
    del names["__name__"]  # by which torch.compile would look names up in the module instead
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def register_processor(cls: type, like: type) -> None:
    """Let diffusers' hooks know of `cls` what they know of `like`; they look classes up exactly."""
    try:
        known = AttentionProcessorRegistry.get(like)
    except ValueError:
        return
    AttentionProcessorRegistry.register(cls, known)


def block_outputs(cls: type) -> list[int] | None:
    """What a block of class `cls` returns, in order: 0 for hidden states, 1 for those of the text; None if unknown."""
    try:
        known = TransformerBlockRegistry.get(cls)
    except ValueError:
        return None
    places = (known.return_hidden_states_index, known.return_encoder_hidden_states_index)
    return sorted((which for which, place in enumerate(places) if place is not None), key=lambda which: places[which])


def context_name(context: CacheContext | str | None) -> str | None:
    """What the pipeline calls this pass."""
    return getattr(context, "name", context)


@contextmanager
def renamed_context(module: nn.Module, context: CacheContext | None, suffix: str) -> Iterator[None]:
    """Let step caches keep what they know of this pass apart from what they know of the pass named in `context`."""
    if context is None:
        yield
        return
    renamed = context + suffix if isinstance(context, str) else replace(context, name=context.name + suffix)
    _set_cache_context(module, renamed)
    try:
        yield
    finally:
        _set_cache_context(module, context)


@contextmanager
def quiet_pipeline(pipe: Any) -> Iterator[None]:
    """No bars of the denoising steps within it."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**(before or {}))
