"""Guidance in any unmodified pipeline: a hook that adds `w (v_c - v_p)` to what the transformer predicts."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from diffusers.utils import logging
from torch import Tensor, nn

from .._compat import CacheContextListener, add_listener, find_listener, remove_listener, renamed_context
from ..integration.progress import find_step
from .blocks import take_samples
from .cfg import BOTH, COND, UNCOND, PipelineCfg
from .combine import combine
from .config import GuidanceConfig
from .engine import Perturber, Prefix
from .outputs import predictions, with_predictions
from .selection import Selection

logger = logging.get_logger(__name__)

HOOK = "diffattn.guidance"


@dataclass(frozen=True)
class Phase:
    """What guidance does in some steps."""

    scale: float
    rescale: float
    selection: Selection


@dataclass
class _Call:
    """One forward of the transformer while it goes on."""

    kind: str
    step: int | None
    phase: Phase
    prefix: Prefix | None = None
    within: ExitStack = field(default_factory=ExitStack)


@dataclass
class _Cond:
    """The conditional call, kept for the unconditional one of the same step."""

    step: int | None
    phase: Phase
    cond: list[Tensor]
    perturbed: list[Tensor]
    returned: list[Tensor]


class GuidanceHook(CacheContextListener):
    """Guides one transformer.

    It sits in torch's hooks of the module, which also run when a forward fails, so that nothing stays behind; the
    registry of diffusers only tells it the cache context.

    Args:
        perturber ([`Perturber`]): of the transformer.
        config ([`GuidanceConfig`]): when guidance is on.
        phases (`dict[int, Phase]`): by entry of the schedule, -1 without one.
        cfg ([`PipelineCfg`]): which call is which.
        scheduler (`SchedulerMixin`, *optional*): tells the step where the pipeline does not.
    """

    def __init__(
        self,
        perturber: Perturber,
        config: GuidanceConfig,
        phases: dict[int, Phase],
        cfg: PipelineCfg,
        scheduler: Any = None,
    ) -> None:
        super().__init__()
        self.perturber, self.config, self.phases = perturber, config, phases
        self.cfg, self.scheduler = cfg, scheduler
        self.passes, self.cost = 0, 0.0
        self._call: _Call | None = None
        self._cond: _Cond | None = None
        self._said = False
        self._handles: list = []
        self._owner = weakref.ref(perturber.transformer)  # a copy of the hook keeps it

    def attach(self) -> None:
        """Put it on the transformer."""
        transformer = self.perturber.transformer
        add_listener(transformer, self, HOOK)
        self._handles = [
            transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            transformer.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def detach(self) -> None:
        """Take it off."""
        for handle in self._handles:
            handle.remove()
        remove_listener(self.perturber.transformer, HOOK)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._call = None
        if module is not self._owner():
            raise RuntimeError(
                f"this {type(module).__name__} is a copy of one that diffattn guides, and diffusers' hooks make such "
                "a copy run the weights of the original: call diffattn.unguide before copying"
            )
        inputs = self.perturber.begin(args, kwargs)
        context = self.context
        timestep = inputs.get("timestep", inputs.get("timesteps"))
        step = find_step(context, self.scheduler, timestep)
        at = None if step is None else step[0]
        kind = self.cfg.kind(context, inputs, at)
        phase = self._phase(step, context)
        if phase is None:
            return
        call = self._call = _Call(kind, at, phase)
        if self.config.apply_to == "uncond":
            self._perturb_uncond(call, inputs)
        elif kind != UNCOND:
            call.prefix = call.within.enter_context(self.perturber.recording(phase.selection))

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        call, self._call = self._call, None
        if call is None:
            return None
        call.within.close()
        if output is None or self.config.apply_to == "uncond":
            return None
        found = predictions(output)
        if call.kind == UNCOND:
            return with_predictions(output, self._uncond(module, call, found))
        perturbed = self._perturbed(module, call, args, kwargs, len(found[0]))
        if call.kind == BOTH:
            return with_predictions(output, self._both(module, call, found, perturbed))
        phase = call.phase
        made = [combine(c, p, scale=phase.scale, rescale=phase.rescale) for c, p in zip(found, perturbed)]
        self._cond = _Cond(call.step, phase, found, perturbed, made)
        return with_predictions(output, made)

    def _phase(self, step: tuple[int, int] | None, context: Any) -> Phase | None:
        at, steps = (None, None) if step is None else step
        sigma = getattr(context, "sigma", None)
        sigmas = getattr(self.scheduler, "sigmas", None)
        if sigma is None and at is not None and sigmas is not None and at < len(sigmas):
            sigma = float(sigmas[at])
        found = self.config.phase(at, steps, sigma)
        phase = None if found is None else self.phases[found[0]]
        off = phase is None or not phase.selection or (self.config.apply_to == "cond" and phase.scale == 0)
        return None if off else phase

    def _perturb_uncond(self, call: _Call, inputs: dict) -> None:
        selection = call.phase.selection
        if call.kind == BOTH:
            selection = selection.beside_others(len(inputs["hidden_states"]) // 2, first=True)
        if call.kind != COND:
            call.within.enter_context(self.perturber.perturbing(selection))
        elif self.cfg.off and not self._said:
            self._said = True
            logger.warning("apply_to='uncond' does nothing here: the pipeline runs without classifier-free guidance")

    def _perturbed(self, module: nn.Module, call: _Call, args: tuple, kwargs: dict, batch: int) -> list[Tensor]:
        """The perturbed pass of the conditional samples."""
        selection, prefix = call.phase.selection, call.prefix
        half = batch // 2 if call.kind == BOTH else 0
        if selection.samples not in (1, batch - half):
            raise ValueError(f"heads were chosen for {selection.samples} samples, {batch - half} are generated")
        if half and self.cfg.slices:
            own = slice(half, None)
            (args, kwargs), prefix = take_samples((args, kwargs), batch, own), prefix.take(batch, own)
        elif half:
            selection = selection.beside_others(half, first=False)
        with renamed_context(module, self.context, "_perturbed"):
            with self.perturber.perturbing(selection, prefix):
                found = predictions(module.forward(*args, **kwargs))
        self.passes += 1
        self.cost += self.perturber.cost(selection, prefix)
        return found if not half or self.cfg.slices else [part[half:] for part in found]

    def _both(self, module: nn.Module, call: _Call, found: list, perturbed: list) -> list[Tensor]:
        return [
            both + self._shift(module, call.phase, call.step, *both.chunk(2), p).repeat(2, *[1] * (both.ndim - 1))
            for both, p in zip(found, perturbed)
        ]

    def _shift(
        self, module: nn.Module, phase: Phase, step: int | None, uncond: Tensor, cond: Tensor, perturbed: Tensor
    ) -> Tensor:
        """What goes on top of classifier-free guidance."""
        if not phase.rescale:
            return phase.scale * (cond - perturbed)
        g = self.cfg.scale(module, step)
        wanted = combine(cond, perturbed, uncond, scale=phase.scale, guidance_scale=g, rescale=phase.rescale)
        return wanted - combine(cond, uncond=uncond, guidance_scale=g)

    def _uncond(self, module: nn.Module, call: _Call, found: list[Tensor]) -> list[Tensor]:
        """The prediction that makes the pipeline's `u + g (c - u)` the guided one, c being returned already."""
        last, self._cond = self._cond, None
        if last is None or last.step != call.step:
            raise RuntimeError("the unconditional call came before the conditional one of its step")
        if not last.phase.rescale:
            return [u + last.phase.scale * (c - p) for u, c, p in zip(found, last.cond, last.perturbed)]
        g = self.cfg.scale(module, call.step)
        if g == 1:
            return found
        options = {"scale": last.phase.scale, "guidance_scale": g, "rescale": last.phase.rescale}
        return [
            (combine(c, p, u, **options) - g * returned) / (1 - g)
            for u, c, p, returned in zip(found, last.cond, last.perturbed, last.returned)
        ]


def find_guidance(transformer: nn.Module) -> GuidanceHook | None:
    """The hook of a transformer that is guided."""
    return find_listener(transformer, HOOK)
