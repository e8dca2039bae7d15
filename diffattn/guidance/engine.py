"""The perturbed pass of one transformer, and what it takes over from the unperturbed one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from diffusers.utils import logging
from torch import Tensor, nn

from ..attention_config import AttentionConfig
from ..integration.attention_inputs import AttentionInputs
from ..integration.execute import run_plan
from ..integration.layer import Layer
from ..integration.placement import place
from ..integration.processors import set_processor
from ..integration.session import SparseSession
from ..methods import NeighborhoodConfig
from ..models.adapter import NoGrid, adapter_for
from ..schedule import Schedule
from .blocks import Skip, Tree, hollow, replaced_forward, take_samples
from .model import map_model
from .processors import guided_processor
from .selection import Selection
from .strengths import Strengths
from .targets import AttentionCall, perturb

logger = logging.get_logger(__name__)


@dataclass
class Prefix:
    """What an unperturbed pass leaves for the perturbed one.

    Args:
        inputs (`tuple`, *optional*): positional and keyword arguments of the first perturbed block.
        outputs (`dict[str, Any]`): shapes of what the blocks before it return.
        attention (`list[torch.Tensor]`): outputs `(B, S, H, D)` of the first perturbed layer; one for every call.
    """

    inputs: tuple | None = None
    outputs: dict[str, Tree] = field(default_factory=dict)
    attention: list[Tensor] = field(default_factory=list)

    def take(self, batch: int, samples: slice) -> Prefix:
        """Only some samples of a batch."""
        calls = self.attention
        calls = calls[samples] if len(calls) == batch > 1 else take_samples(calls, batch, samples)
        return Prefix(
            take_samples(self.inputs, batch, samples), take_samples(self.outputs, batch, samples), list(calls)
        )


class Perturber:
    """Runs a transformer with perturbed heads and skipped blocks.

    Nothing stays changed between passes: processors and blocks are replaced within `recording` and `perturbing` and
    are the very same objects after them, also after an exception.

    Args:
        transformer (`nn.Module`): of a supported class.
        local ([`AttentionConfig`], *optional*): sparse attention that is the target `"local"`.
        share_prefix (`bool`, *optional*, defaults to `True`): start the perturbed pass at its first perturbed block.
    """

    def __init__(
        self, transformer: nn.Module, local: AttentionConfig | None = None, share_prefix: bool = True
    ) -> None:
        self.transformer, self.adapter = transformer, adapter_for(transformer)
        self.model = map_model(transformer)
        self.share_prefix = share_prefix
        self.names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._runtime = SparseSession(local or NeighborhoodConfig(), Schedule(0, 0, 0), "auto")
        self._skips: dict[str, Skip] = {}
        self._cache_said = False

    def begin(self, args: tuple, kwargs: dict) -> dict:
        """Before a forward of the transformer: learn the token grid. Gives the inputs by name."""
        inputs = {**dict(zip(self.names, args)), **kwargs}
        try:
            grid = self.adapter.grid(self.transformer, inputs)
            self._runtime.begin_forward(grid, self.adapter.tokens_before(self.transformer, inputs))
        except NoGrid as error:
            self._runtime.begin_forward(None, reason=str(error))
        return inputs

    @contextmanager
    def recording(self, selection: Selection) -> Iterator[Prefix]:
        """Within it the transformer runs as always; the prefix holds what `perturbing` may take over."""
        prefix, first = Prefix(), selection.first_block(self.model)
        with ExitStack() as stack:
            if first is not None and self._may_share():
                for name in self.model.blocks[:first]:
                    stack.enter_context(self._block(name, partial(_note_output, prefix.outputs, name)))
                name = self.model.blocks[first]
                stack.enter_context(self._block(name, partial(_note_inputs, prefix)))
                layer = self._reused_layer(selection, name)
                if layer is not None and len(selection.strengths[layer].replaced) < self.model.layers[layer]:
                    stack.enter_context(self._processor(layer, partial(_note_attention, prefix.attention)))
            yield prefix

    @contextmanager
    def perturbing(self, selection: Selection, prefix: Prefix | None = None) -> Iterator[None]:
        """Within it the transformer runs perturbed, from the first perturbed block on if there is a prefix."""
        first = selection.first_block(self.model)
        known = {}
        with ExitStack() as stack:
            for name in selection.skipped:
                skip = self._skips.setdefault(name, Skip(self.transformer.get_submodule(name)))
                stack.enter_context(self._block(name, partial(skip.instead_of, active=selection.skipping)))
            if first is not None and prefix is not None and self._complete(prefix, first):
                for name in self.model.blocks[:first]:
                    stack.enter_context(self._block(name, partial(_hand_through, prefix.outputs[name])))
                name = self.model.blocks[first]
                stack.enter_context(self._block(name, partial(_with_inputs, prefix.inputs)))
                known = {self._reused_layer(selection, name): list(prefix.attention)}
            for name, strengths in selection.strengths.items():
                if self.model.block_of(name) not in selection.skipped:
                    target = partial(self._local, name) if selection.target == "local" else selection.target
                    act = partial(self._perturb, strengths, target, selection.rows, known.get(name, []))
                    stack.enter_context(self._processor(name, act))
            yield

    def cost(self, selection: Selection, prefix: Prefix | None = None) -> float:
        """Blocks that run in a perturbed pass, over all blocks."""
        first = selection.first_block(self.model)
        if first is None or prefix is None or not self._complete(prefix, first):
            return 1.0
        return 1 - first / len(self.model.blocks)

    def image(self, tokens: int) -> tuple[int, int] | None:
        """First and past-the-last row of the visual tokens in a sequence of so many, where known."""
        if self._runtime.state.grid is None:
            return None
        at = place(self._runtime.state.grid, self._runtime.state.before, tokens)
        if isinstance(at, str):
            return None
        start = at.shift or at.grid.video_start
        return start, start + at.grid.video_tokens

    def _perturb(
        self,
        strengths: Strengths,
        target: str | Callable[[AttentionCall], Tensor],
        rows: str,
        known: list[Tensor],
        call: AttentionCall,
    ) -> Tensor:
        if strengths.samples not in (1, len(call.query)):
            raise NotImplementedError(
                f"{self.model.model} runs its attention with {len(call.query)} samples at a time, heads were chosen "
                f"for {strengths.samples}"
            )
        if rows != "all":
            call = replace(call, image=self.image(call.query.shape[1]))
        return perturb(call, strengths, target, rows, known.pop(0) if known else None)

    def _local(self, name: str, call: AttentionCall) -> Tensor:
        """What sparse attention gives, as a weak version of the dense one."""
        session, tokens = self._runtime, call.query.shape[1]
        grid, before = session.state.grid, session.state.before
        placement = "no token grid" if grid is None else session.plans.place(tokens, grid, before)
        if isinstance(placement, str):
            raise NotImplementedError(f"target='local' cannot run in {name}: {placement}")
        layer = Layer(name, list(self.model.layers).index(name), dense=False)
        plan = session.plans.plan(placement, layer, call.query, call.key)
        plan = session.state.masked(plan, call.key_mask())
        return run_plan(plan, AttentionInputs(call.query, call.key, call.value, scale=call.scale), session.impl)

    def _reused_layer(self, selection: Selection, block: str) -> str | None:
        """The first perturbed layer of the first perturbed block: its attention is that of the unperturbed pass."""
        if block in selection.skipped:
            return None
        return next((layer for layer in self.model.layers_of(block) if layer in selection.strengths), None)

    def _may_share(self) -> bool:
        if not self.share_prefix:
            return False
        cached = getattr(self.transformer, "is_cache_enabled", False)
        if cached and not self._cache_said:
            self._cache_said = True
            logger.info("a step cache is enabled, so that perturbed passes run from the first block")
        return not cached

    def _complete(self, prefix: Prefix, first: int) -> bool:
        return prefix.inputs is not None and all(name in prefix.outputs for name in self.model.blocks[:first])

    def _block(self, name: str, make: Callable[[Callable], Callable]) -> Any:
        return replaced_forward(self.transformer.get_submodule(name), make)

    @contextmanager
    def _processor(self, name: str, act: Callable[[AttentionCall], Tensor]) -> Iterator[None]:
        attention = self.transformer.get_submodule(name)
        before = attention.processor
        set_processor(attention, guided_processor(attention, self.adapter, act))
        try:
            yield
        finally:
            set_processor(attention, before)


def _note_inputs(prefix: Prefix, forward: Callable) -> Callable:
    def run(*args, **kwargs):
        prefix.inputs = (args, kwargs)
        return forward(*args, **kwargs)

    return run


def _note_output(outputs: dict[str, Tree], name: str, forward: Callable) -> Callable:
    def run(*args, **kwargs):
        output = forward(*args, **kwargs)
        outputs[name] = hollow(output)
        return output

    return run


def _note_attention(outputs: list[Tensor], call: AttentionCall) -> Tensor:
    outputs.append(call.run())
    return outputs[-1]


def _hand_through(output: Tree, forward: Callable) -> Callable:
    return lambda *args, **kwargs: output


def _with_inputs(inputs: tuple, forward: Callable) -> Callable:
    return lambda *args, **kwargs: forward(*inputs[0], **inputs[1])
