"""Guidance in any unmodified pipeline: a hook that adds `w (v_c - v_p)` to what the transformer predicts."""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from .._compat import CacheContextListener, add_listener, find_listener, remove_listener, renamed_context
from ..integration.progress import PresentScheduler, find_step
from .blocks import take_samples
from .cfg import BOTH, COND, UNCOND, PipelineCfg
from .engine import Perturber
from .formula import combine, shift_of_batch, uncond_after
from .guidance_config import GuidanceConfig
from .nag.hook import NAGHook, find_nag
from .outputs import predictions, with_predictions
from .per_thread import PerThread
from .phases import Phase
from .prefix import Prefix
from .selection import Selection

logger = logging.get_logger(__name__)

NAME = "diffattn.guidance"

_counting = threading.Lock()


@dataclass
class _Forward:
    """One forward of the transformer while it goes on."""

    kind: str
    step: tuple[int, int] | None
    phase: Phase
    inputs: dict[str, Any]
    prefix: Prefix | None = None
    within: ExitStack = field(default_factory=ExitStack)

    @property
    def at(self) -> int | None:
        """The number of the step."""
        return None if self.step is None else self.step[0]


@dataclass
class _CondPredictions:
    """Of the conditional call, kept for the unconditional one of the same step."""

    step: int | None
    phase: Phase
    cond: list[Tensor]
    perturbed: list[Tensor]
    returned: list[Tensor]


class _Run(PerThread):
    """What the run of this thread knows."""

    def __init__(self) -> None:
        self.forward: _Forward | None = None
        self.cond: _CondPredictions | None = None


class GuidanceHook(CacheContextListener):
    """Guides one transformer.

    It sits in torch's hooks of the module, before and after its forward, which it leaves to others to wrap: offload,
    step caches, layerwise casting. Threads may run the transformer at the same time.

    Args:
        perturber ([`Perturber`]): of the transformer.
        config ([`GuidanceConfig`]): when guidance is on.
        phases (`dict[int, Phase]`): by entry of the schedule, -1 without one.
        cfg ([`PipelineCfg`]): which call is which.
        scheduler ([`PresentScheduler`]): tells the step where the pipeline does not.
    """

    def __init__(
        self,
        perturber: Perturber,
        config: GuidanceConfig,
        phases: dict[int, Phase],
        cfg: PipelineCfg,
        scheduler: PresentScheduler,
    ) -> None:
        super().__init__()
        self.perturber, self.config, self.phases = perturber, config, phases
        self.cfg, self.scheduler = cfg, scheduler
        self.passes, self.cost = 0, 0.0
        self._run = _Run()
        self._warned = False
        self._handles: list = []
        self._owner = weakref.ref(perturber.transformer)  # a copy of the hook keeps it

    def attach(self) -> None:
        """Put it on the transformer."""
        transformer = self.perturber.transformer
        add_listener(transformer, self, NAME)
        self._handles = [
            # first of all: a negative prompt changes the inputs
            transformer.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            transformer.register_forward_hook(self._after, always_call=True),
        ]

    def detach(self) -> None:
        """Take it off."""
        self._end_forward()
        for handle in self._handles:
            handle.remove()
        remove_listener(self.perturber.transformer, NAME)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._end_forward()
        if module is not self._owner():
            raise RuntimeError(
                f"this {type(module).__name__} is a copy of one that diffattn guides, and diffusers' hooks make such "
                "a copy run the weights of the original: call diffattn.unguide before copying"
            )
        inputs = self.perturber.begin(args, kwargs)
        context, scheduler = self.context, self.scheduler()
        step = find_step(context, scheduler, inputs.get("timestep", inputs.get("timesteps")))
        at = None if step is None else step[0]
        kind = self.cfg.kind(context, inputs, at)
        phase = self._phase(step, context, scheduler)
        if phase is None:
            return
        forward = self._run.forward = _Forward(kind, step, phase, inputs)
        if self.config.apply_to == "uncond":
            self._perturb_uncond(forward, inputs)
        elif kind != UNCOND:
            forward.prefix = forward.within.enter_context(self.perturber.recording(phase.selection))

    def _after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        forward = self._end_forward()
        if forward is None or output is None or self.config.apply_to == "uncond":
            return None
        found = predictions(output)
        if forward.kind == UNCOND:
            return with_predictions(output, self._uncond(module, forward, found))
        perturbed = self._perturbed(module, forward, len(found[0]))
        if forward.kind == BOTH:
            return with_predictions(output, self._both(module, forward, found, perturbed))
        phase = forward.phase
        guided = [combine(c, p, scale=phase.scale, rescale=phase.rescale) for c, p in zip(found, perturbed)]
        self._run.cond = _CondPredictions(forward.at, phase, found, perturbed, guided)
        return with_predictions(output, guided)

    def _end_forward(self) -> _Forward | None:
        """Restore what the forward of this thread replaced; one that was interrupted is ended by the next."""
        forward, self._run.forward = self._run.forward, None
        if forward is not None:
            forward.within.close()
        return forward

    def _phase(self, step: tuple[int, int] | None, context: Any, scheduler: Any) -> Phase | None:
        at, steps = (None, None) if step is None else step
        sigma = getattr(context, "sigma", None)
        if sigma is None and at is not None:
            sigma = _sigma_of_step(scheduler, at)
        found = self.config.phase(at, steps, sigma)
        phase = None if found is None else self.phases[found[0]]
        off = phase is None or not phase.selection or (self.config.apply_to == "cond" and phase.scale == 0)
        return None if off else phase

    def _perturb_uncond(self, forward: _Forward, inputs: dict) -> None:
        selection = forward.phase.selection
        if forward.kind == BOTH:
            selection = selection.beside_others(len(inputs["hidden_states"]) // 2, first=True)
        if forward.kind != COND:
            forward.within.enter_context(self.perturber.perturbing(selection))
        elif self.cfg.off and not self._warned:
            self._warned = True
            logger.warning("apply_to='uncond' does nothing here: the pipeline runs without classifier-free guidance")

    def _perturbed(self, module: nn.Module, forward: _Forward, batch: int) -> list[Tensor]:
        """The perturbed pass of the conditional samples."""
        selection, prefix, inputs = forward.phase.selection, forward.prefix, forward.inputs
        kind, nag = forward.kind, find_nag(module)
        half = batch // 2 if kind == BOTH else 0
        if selection.samples not in (1, batch - half):
            raise ValueError(f"heads were chosen for {selection.samples} samples, {batch - half} are generated")
        if half and nag is not None and nag.enlarges_batch:
            prefix = None  # it holds samples with the negative prompt behind those of both halves
        if half and self.cfg.slices:
            own = slice(half, None)
            inputs, prefix, kind = take_samples(inputs, batch, own), prefix and prefix.take(batch, own), COND
        elif half:
            selection = selection.beside_others(half, first=False)
        with renamed_context(module, self.context, "_perturbed"):
            found = self._run_perturbed(module, nag, kind, inputs, forward.step, selection, prefix)
        with _counting:
            self.passes += 1
            self.cost += self.perturber.cost(selection, prefix)
        return found if not half or self.cfg.slices else [part[half:] for part in found]

    def _run_perturbed(
        self,
        module: nn.Module,
        nag: NAGHook | None,
        kind: str,
        inputs: dict,
        step: tuple[int, int] | None,
        selection: Selection,
        prefix: Prefix | None,
    ) -> list[Tensor]:
        with nullcontext() if nag is None else nag.guided_inputs(kind, inputs, step) as texts:
            if texts is not None:
                self.perturber.begin((), inputs := texts.inputs)
            with self.perturber.perturbing(selection, prefix):
                output = module.forward(**inputs)
        return predictions(output if texts is None else texts.trimmed(output))

    def _both(self, module: nn.Module, forward: _Forward, found: list, perturbed: list) -> list[Tensor]:
        """Predictions of a batch [uncond; cond] whose `u + g (c - u)` is the guided one."""
        options, guided = self._formula_options(module, forward.phase, forward.at), []
        for both, p in zip(found, perturbed):
            uncond, cond = both.chunk(2)
            shift = shift_of_batch(cond, p, uncond, **options)
            guided.append(both + torch.cat([shift, shift]))
        return guided

    def _uncond(self, module: nn.Module, forward: _Forward, found: list[Tensor]) -> list[Tensor]:
        """The unconditional prediction that makes `u + g (c - u)` the guided one, c being returned already."""
        last, self._run.cond = self._run.cond, None
        if last is None or last.step != forward.at:
            raise RuntimeError("the unconditional call came before the conditional one of its step")
        options = self._formula_options(module, last.phase, forward.at)
        parts = zip(last.returned, last.cond, last.perturbed, found)
        return [uncond_after(*tensors, **options) for tensors in parts]

    def _formula_options(self, module: nn.Module, phase: Phase, step: int | None) -> dict[str, Any]:
        g = self.cfg.scale(module, step) if phase.rescale else None
        return {"scale": phase.scale, "guidance_scale": g, "rescale": phase.rescale}


def find_guidance(transformer: nn.Module) -> GuidanceHook | None:
    """The hook of a transformer that is guided."""
    return find_listener(transformer, NAME)


def _sigma_of_step(scheduler: Any, step: int) -> float | None:
    """The noise level at which a step begins, where the scheduler knows it."""
    sigmas, call = getattr(scheduler, "sigmas", None), step * getattr(scheduler, "order", 1)
    return float(sigmas[call]) if sigmas is not None and call < len(sigmas) else None
