"""Guidance for the length of a pipeline's call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..integration.apply import find_transformers
from .apply_guidance import guide, unguide_text
from .guidance_hook import find_guidance
from .guided_run import guided
from .nag.config import NAGConfig
from .nag.hook import find_nag


@contextmanager
def guidance_scope(pipe: Any, config: dict | NAGConfig | None) -> Iterator[None]:
    """[`guide`] on entry; on exit, also by an error, no guidance of that kind.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to guide.
        config (`dict` or [`NAGConfig`], *optional*): the arguments of [`guide`] by name, or a negative prompt; None
            leaves everything as it is.

    Raises:
        TypeError: as [`guide`], and an argument that it does not take.
        ValueError: as [`guide`], or `pipe` is guided in this way already.
    """
    if config is None:
        yield
        return
    find = find_nag if isinstance(config, NAGConfig) else find_guidance
    if any(find(transformer) for transformer in find_transformers(pipe)):
        raise ValueError("this pipeline is guided already: call diffattn.unguide(pipe) first, or leave the config out")
    if not isinstance(config, NAGConfig):
        with guided(pipe, **{"heads": None, **config}):
            yield
        return
    guide(pipe, config)
    try:
        yield
    finally:
        unguide_text(pipe)
