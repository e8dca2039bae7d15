"""Every private name of diffusers that diffattn touches, in one place. Written against diffusers 0.42."""

from __future__ import annotations

from collections.abc import Callable

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.utils.torch_utils import unwrap_module

__all__ = ["HookRegistry", "ModelHook", "StateManager", "dispatch_attention_fn", "register_backend", "unwrap_module"]


def register_backend(name: str, attention: Callable) -> AttentionBackendName:
    """A backend of our own that diffusers' dispatcher accepts, without adding it to the public list of names.

    The dispatcher wants an instance of its enum as the key of its table, and nothing more: the member is not entered
    into the enum, so that `set_attention_backend` neither offers nor accepts it.
    """
    member = str.__new__(AttentionBackendName, name)
    member._name_, member._value_ = name.upper(), name
    _AttentionBackendRegistry.register(member, supports_context_parallel=False)(attention)
    return member
