"""Guidance for the length of a pipeline's call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..integration.apply import find_transformers
from .guidance_hook import find_guidance
from .guided_run import guided


@contextmanager
def guidance_scope(pipe: Any, config: dict | None) -> Iterator[None]:
    """[`guide`] on entry; on exit, also by an error, no guidance.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to guide.
        config (`dict`, *optional*): the arguments of [`guide`] by name; None leaves everything as it is.

    Raises:
        TypeError: as [`guide`], and an argument that it does not take.
        ValueError: as [`guide`], or `pipe` is guided already.
    """
    if config is None:
        yield
        return
    if any(find_guidance(transformer) for transformer in find_transformers(pipe)):
        raise ValueError("this pipeline is guided already: call diffattn.unguide(pipe) first, or leave the config out")
    with guided(pipe, **{"heads": None, **config}):
        yield
