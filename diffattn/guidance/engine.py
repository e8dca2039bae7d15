"""The perturbed pass of one transformer, and what it reuses of the unperturbed one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from diffusers.utils import logging
from torch import Tensor, nn

from ..attention_config import AttentionConfig
from ..integration.placement import Placement, place
from ..models.adapter import NoGrid, adapter_for
from .blocks import Skip
from .local_attention import LocalAttention
from .model import map_model
from .overrides import overridden_attention, overridden_forward
from .per_thread import PerThread
from .prefix import Prefix
from .selection import Selection
from .strengths import Strengths
from .targets import LayerCall, perturb

logger = logging.get_logger(__name__)


class _TokenGrid(PerThread):
    """Where the visual tokens of this thread's forward are."""

    def __init__(self) -> None:
        self.video: tuple[int, int, int] | None = None
        self.before = 0
        self.reason = "the transformer was not entered through its forward"


class Perturber:
    """Runs a transformer with perturbed heads and skipped blocks.

    Nothing stays changed between passes: processors and blocks are replaced within `recording` and `perturbing` and
    are the very same objects after them, also after an exception. Only the thread that enters them is perturbed.

    Args:
        transformer (`nn.Module`): of a supported class.
        local ([`AttentionConfig`], *optional*): the sparse attention of the target `"local"`.
        share_prefix (`bool`, *optional*, defaults to `True`): start the perturbed pass at its first perturbed block.
    """

    def __init__(
        self, transformer: nn.Module, local: AttentionConfig | None = None, share_prefix: bool = True
    ) -> None:
        self.transformer, self.adapter = transformer, adapter_for(transformer)
        self.model = map_model(transformer)
        self.share_prefix = share_prefix
        self.input_names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._local = LocalAttention(local)
        self._grid = _TokenGrid()
        self._skips: dict[str, Skip] = {}
        self._logged_cache = False

    def begin(self, args: tuple, kwargs: dict) -> dict:
        """Before a forward of the transformer: find the token grid. Returns the inputs by name."""
        inputs, grid = {**dict(zip(self.input_names, args)), **kwargs}, self._grid
        try:
            grid.video = self.adapter.grid(self.transformer, inputs)
            grid.before = self.adapter.tokens_before_grid(self.transformer, inputs)
        except NoGrid as error:
            grid.video, grid.reason = None, str(error)
        return inputs

    @contextmanager
    def recording(self, selection: Selection) -> Iterator[Prefix]:
        """Within it the transformer runs unperturbed; the prefix records what `perturbing` may reuse."""
        prefix, first = Prefix(), selection.first_block(self.model)
        with ExitStack() as stack:
            if first is not None and self._may_share():
                *before, name = self.model.blocks[: first + 1]
                for block in before:
                    stack.enter_context(self._block(block, partial(prefix.record_output, block=block)))
                stack.enter_context(self._block(name, prefix.record_inputs))
                layer = self._reused_layer(selection, name)
                if layer is not None and len(selection.strengths[layer].replaced) < self.model.layers[layer]:
                    stack.enter_context(self._attention(layer, prefix.record_attention))
            yield prefix

    @contextmanager
    def perturbing(self, selection: Selection, prefix: Prefix | None = None) -> Iterator[None]:
        """Within it the transformer runs perturbed, with a prefix from the first perturbed block on."""
        first = selection.first_block(self.model)
        reused = {}
        with ExitStack() as stack:
            for name in selection.skipped:
                skip = self._skips.setdefault(name, Skip(self.transformer.get_submodule(name)))
                stack.enter_context(self._block(name, partial(skip.skipped_forward, active=selection.skipping)))
            if self._is_complete(prefix, first):
                *before, name = self.model.blocks[: first + 1]
                for block in before:
                    stack.enter_context(self._block(block, partial(prefix.replay_output, block=block)))
                stack.enter_context(self._block(name, prefix.replay_inputs))
                reused = {self._reused_layer(selection, name): list(prefix.attention)}
            for name, strengths in selection.strengths.items():
                if self.model.block_of(name) not in selection.skipped:
                    act = self._perturb_layer(name, strengths, selection, reused.get(name, []))
                    stack.enter_context(self._attention(name, act))
            yield

    def cost(self, selection: Selection, prefix: Prefix | None = None) -> float:
        """The share of the blocks that run in a perturbed pass."""
        first = selection.first_block(self.model)
        return 1 - first / len(self.model.blocks) if self._is_complete(prefix, first) else 1.0

    def _perturb_layer(
        self, name: str, strengths: Strengths, selection: Selection, unperturbed: list[Tensor]
    ) -> Callable[[LayerCall], Tensor]:
        target = partial(self._attend_locally, name) if selection.target == "local" else selection.target
        return partial(self._perturb, strengths, target, selection.rows, unperturbed)

    def _perturb(
        self,
        strengths: Strengths,
        target: str | Callable[[LayerCall], Tensor],
        rows: str,
        unperturbed: list[Tensor],
        call: LayerCall,
    ) -> Tensor:
        if strengths.samples not in (1, len(call.query)):
            raise NotImplementedError(
                f"{self.model.model} runs its attention with {len(call.query)} samples at a time, heads were chosen "
                f"for {strengths.samples}"
            )
        if rows != "all":
            call = replace(call, image=self._image_rows(call.query.shape[1]))
        return perturb(call, strengths, target, rows, unperturbed.pop(0) if unperturbed else None)

    def _attend_locally(self, name: str, call: LayerCall) -> Tensor:
        placement = self._place(call.query.shape[1])
        if isinstance(placement, str):
            raise NotImplementedError(f"target='local' cannot run in {name}: {placement}")
        return self._local(call, placement, name, list(self.model.layers).index(name))

    def _image_rows(self, tokens: int) -> tuple[int, int] | None:
        """First and past-the-last row of the visual tokens in a sequence of so many, where known."""
        placement = self._place(tokens)
        if isinstance(placement, str):
            return None
        start = placement.shift or placement.grid.video_start
        return start, start + placement.grid.video_tokens

    def _place(self, tokens: int) -> Placement | str:
        """Where a sequence of so many tokens sits on the grid, or why this is not known."""
        grid = self._grid
        return grid.reason if grid.video is None else place(grid.video, grid.before, tokens)

    def _reused_layer(self, selection: Selection, block: str) -> str | None:
        """The first perturbed layer of the first perturbed block: its attention is that of the unperturbed pass."""
        if block in selection.skipped:
            return None
        return next((layer for layer in self.model.layers_of(block) if layer in selection.strengths), None)

    def _may_share(self) -> bool:
        if not self.share_prefix:
            return False
        cached = getattr(self.transformer, "is_cache_enabled", False)
        if cached and not self._logged_cache:
            self._logged_cache = True
            logger.info("a step cache is enabled, so that perturbed passes run from the first block")
        return not cached

    def _is_complete(self, prefix: Prefix | None, first: int | None) -> bool:
        if first is None or prefix is None or prefix.inputs is None:
            return False
        return all(name in prefix.outputs for name in self.model.blocks[:first])

    def _block(self, name: str, make: Callable[[Callable], Callable]) -> Any:
        return overridden_forward(self.transformer.get_submodule(name), make)

    def _attention(self, name: str, act: Callable[[LayerCall], Tensor]) -> Any:
        return overridden_attention(self.transformer.get_submodule(name), self.adapter, act)
