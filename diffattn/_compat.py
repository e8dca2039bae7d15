"""Every private name of diffusers that diffattn touches, in one place: the same from diffusers 0.37 to 0.42."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks._helpers import AttentionProcessorRegistry, TransformerBlockRegistry
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.hooks.hooks import StateManager
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
    "ContextParallelSplitHook",
    "HookRegistry",
    "ModelHook",
    "StateManager",
    "active_backend",
    "block_outputs",
    "context_name",
    "apply_rotary_emb",
    "context_parallel_attention",
    "dispatch_attention_fn",
    "hooks_before",
    "quiet_pipeline",
    "register_backend",
    "register_processor",
    "renamed_context",
    "unwrap_module",
]


# the argument of `from_pretrained` before and since
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


def hooks_before(module: nn.Module, name: str) -> list[ModelHook]:
    """The hooks of `module` that run before the one called `name` does: those registered later."""
    registry = module._diffusers_hook
    order = registry._hook_order
    return [registry.hooks[later] for later in order[order.index(name) + 1 :]]


def register_backend(name: str, attention: Callable) -> AttentionBackendName:
    """A backend of our own that diffusers' dispatcher accepts, without adding it to the public list of names.

    The dispatcher wants an instance of its enum as the key of its table, and nothing more: the member is not entered
    into the enum, so that `set_attention_backend` neither offers nor accepts it.
    """
    member = str.__new__(AttentionBackendName, name)
    member._name_, member._value_ = name.upper(), name
    _AttentionBackendRegistry.register(member, supports_context_parallel=True)(attention)
    return member


@contextmanager
def active_backend(backend: AttentionBackendName) -> Iterator[AttentionBackendName]:
    """Make `backend` the one of calls that name none, and give the one that was."""
    before = _AttentionBackendRegistry._active_backend
    _AttentionBackendRegistry._active_backend = backend
    try:
        yield before
    finally:
        _AttentionBackendRegistry._active_backend = before


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
