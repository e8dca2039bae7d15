"""Sparse attention for the length of a `with` block, which is what a pipeline's call needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..attention_config import AttentionConfig
from ..schedule import Schedule
from .apply import disable, enable, find_transformers
from .hook import find_hook
from .session import SparseSession


@contextmanager
def sparse_attention_scope(
    pipe: Any, config: str | AttentionConfig | None, *, schedule: Schedule | None = None
) -> Iterator[None]:
    """[`enable`] on entry; on exit, also by an error, what was enabled before, or nothing.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to change, in place.
        config (`str` or [`AttentionConfig`]): a method, by name or configured; None leaves everything as it is.
        schedule ([`Schedule`], *optional*): dense steps and layers, the defaults of [`Schedule`] if not given.

    Raises:
        TypeError: as [`enable`].
        ValueError: as [`enable`]; a `schedule` without a `config`; transformers enabled one by one, each differently.
    """
    if config is None and schedule is not None:
        raise ValueError("a schedule goes with a method: give the config too")
    if config is None:
        yield
        return
    before = _enabled_session(pipe)
    enable(pipe, config, schedule=schedule)
    try:
        yield
    finally:
        disable(pipe)
        if before:
            enable(pipe, before.config, schedule=before.schedule, impl=before.impl, grid=before.fixed_grid)


def _enabled_session(pipe: Any) -> SparseSession | None:
    hooks = [find_hook(transformer) for transformer in find_transformers(pipe)]
    sessions = {hook and hook.handler for hook in hooks}
    if len(sessions) > 1:
        raise ValueError("the transformers of this pipeline are enabled differently, disable them first")
    return sessions.pop()
