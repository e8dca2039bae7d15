"""Turning sparse attention on and off."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from .._compat import unwrap_module
from ..attention_config import AttentionConfig, load_settings
from ..grid import TokenGrid
from ..kernels.attend import check_impl
from ..methods import METHODS, CalibratedConfig
from ..methods import config as config_by_name
from ..models.adapter import adapter_for, find_adapter, supported_models
from ..schedule import Schedule
from .dropped_weights import describe_dropped_weights
from .handler import AttentionHandler
from .hook import SparseAttentionHook, find_hook
from .layer import Layer
from .native import EVERY_CALL, NativeConfig
from .parallel import check_parallel
from .processors import SparseProcessorMixin, set_processor, sparse_processor
from .session import SparseSession


def enable(
    pipe: Any,
    config: str | os.PathLike | AttentionConfig = "auto",
    *,
    schedule: Schedule | None = None,
    impl: str = "auto",
    grid: tuple[int, int, int] | None = None,
) -> None:
    """Turn sparse attention on in a pipeline (all its transformers) or in one transformer.

    Only self-attention over visual tokens changes; dense steps, dense layers and cross-attention stay on the backend
    the model has. A second call replaces the first.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to change, in place.
        config (`str`, `os.PathLike` or [`AttentionConfig`], *optional*, defaults to `"auto"`): a method, by name or
            configured, or what [`calibrate`] found; the folder or Hub repository where `config.save_pretrained` left
            one; or `"native"`, the sparse pattern that the model was trained with and brings itself.
        schedule ([`Schedule`], *optional*): dense steps and layers, if not given those saved with the configuration,
            none with `"native"`, or the defaults of [`Schedule`].
        impl (`str`, *optional*, defaults to `"auto"`): kernel implementation, see [`~kernels.attend.attend`].
        grid (`tuple[int, int, int]`, *optional*): frames, height and width of the visual tokens, where the inputs of
            the transformer do not tell (LTX with `video_coords`); found in each forward if not given.

    Raises:
        TypeError: `pipe` is neither a pipeline with a supported transformer nor one.
        ValueError: an unknown method or `impl`, a grid that is none, or a calibration for another model.
        OSError: a folder or repository without `diffattn_config.json`.
        NotImplementedError: the transformer runs ring attention.

    Example:

    ```python
    >>> diffattn.enable(pipe, "radial")
    >>> video = pipe(prompt).frames[0]
    >>> diffattn.disable(pipe)
    ```
    """
    if not isinstance(schedule, (Schedule, type(None))):
        raise TypeError(f"schedule must be a diffattn.Schedule, got {type(schedule).__name__}")
    config, saved = _resolve(config)
    schedule = schedule or saved or (EVERY_CALL if isinstance(config, NativeConfig) else Schedule())
    check_impl(impl)
    if grid is not None:
        grid = _check_grid(grid)
    transformers = find_transformers(pipe)
    for transformer in transformers:
        check_parallel(getattr(transformer, "_parallel_config", None))
        if isinstance(config, CalibratedConfig):
            _check_calibration(config, transformer, schedule)
    session = SparseSession(config, schedule, impl, pipe, grid)
    for transformer in transformers:
        install_processors(transformer, session)
        if (dropped := describe_dropped_weights(transformer)) is not None:
            session.say_once(dropped)


def disable(pipe: Any) -> None:
    """Put every processor that [`enable`] replaced back, the very same objects. Without effect where nothing is on."""
    for transformer in find_transformers(pipe):
        hook = find_hook(transformer)
        if hook is None:
            continue
        for name in hook.adapter.attention(transformer):
            attention = transformer.get_submodule(name)
            if isinstance(attention.processor, SparseProcessorMixin):
                set_processor(attention, attention.processor.original)
        for _, processor in hook.processors:
            processor.layer.disable()
        hook.detach(transformer)


def apply_sparse_attention(
    transformer: nn.Module, config: str | AttentionConfig, *, schedule: Schedule | None = None, impl: str = "auto"
) -> None:
    """[`enable`] for one transformer, in the idiom of diffusers' `apply_*` functions."""
    adapter_for(transformer)
    enable(transformer, config, schedule=schedule, impl=impl)


def remove_sparse_attention(transformer: nn.Module) -> None:
    """[`disable`] for one transformer."""
    adapter_for(transformer)
    disable(transformer)


def find_transformers(pipe: Any) -> list[nn.Module]:
    """The supported transformers of a pipeline, or `[pipe]` if it is one itself."""
    if isinstance(pipe, nn.Module):
        adapter_for(pipe)
        return [unwrap_module(pipe)]
    components = getattr(pipe, "components", None)
    found = [part for part in components.values() if find_adapter(part)] if isinstance(components, dict) else []
    if not found:
        raise TypeError(
            f"diffattn does not support {type(pipe).__name__}: it has no transformer of the supported classes "
            f"{', '.join(supported_models())}"
        )
    return [unwrap_module(part) for part in found]


def install_processors(transformer: nn.Module, handler: AttentionHandler) -> None:
    """Put processors that hand their attention to `handler` into one transformer, and the hook that informs it."""
    adapter = adapter_for(transformer)
    disable(transformer)
    names, processors = adapter.attention(transformer), []
    for index, name in enumerate(names):
        attention = transformer.get_submodule(name)
        layer = Layer(name, index, handler.is_dense_layer(index, len(names)))
        set_processor(attention, sparse_processor(attention.processor, handler, layer, adapter))
        handler.layers.append(layer)
        processors.append((attention, attention.processor))
    SparseAttentionHook(handler, adapter, processors).attach(transformer)


def _check_calibration(config: CalibratedConfig, transformer: nn.Module, schedule: Schedule) -> None:
    model, layers = type(transformer).__name__, len(adapter_for(transformer).attention(transformer))
    if (model, layers) != (config.model, config.layers):
        raise ValueError(
            f"this calibration is for {config.model} with {config.layers} self-attention layers, not for {model} with "
            f"{layers}: run diffattn.calibrate on this pipeline"
        )
    for layer, densities in enumerate(config.densities[0]):
        if densities is None and not schedule.is_dense_layer(layer, layers):
            raise ValueError(f"layer {layer} was dense in the calibration, so it must be in the schedule: {schedule}")


def _check_grid(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    if not isinstance(grid, (tuple, list)) or len(grid) != 3:
        raise ValueError(f"grid must be (frames, height, width) in tokens, got {grid!r}")
    TokenGrid(*grid)
    return tuple(grid)


def _resolve(config: str | os.PathLike | AttentionConfig) -> tuple[AttentionConfig, Schedule | None]:
    """The configuration, and the schedule that was saved with it."""
    if isinstance(config, CalibratedConfig):
        return config, config.schedule
    if isinstance(config, AttentionConfig):
        return config, None
    if config == NativeConfig.method:
        return NativeConfig(), None
    if isinstance(config, os.PathLike) or (isinstance(config, str) and _is_place(config)):
        return load_settings(config)
    if isinstance(config, str):
        return config_by_name(config), None
    raise TypeError(f"config must be a method name, a folder or an AttentionConfig, got {type(config).__name__}")


def _is_place(name: str) -> bool:
    """Whether a name that is no method is a folder, or the `owner/name` of a repository."""
    return name not in METHODS and ("/" in name or os.path.isdir(name))
