"""Guidance by perturbed heads as a diffusers guider, for pipelines that have a guider component."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from .._compat import unwrap_module
from .engine import Perturber
from .formula import combine
from .guidance_config import GuidanceConfig, takes_guidance_options
from .head_names import resolve_heads
from .head_set import HeadSet
from .phases import Phase, make_phases
from .prefix import Prefix
from .presets import Preset, find_preset

COND, PERTURBED, UNCOND = "pred_cond", "pred_cond_perturbed", "pred_uncond"
CONDITIONING = {COND: 0, PERTURBED: 0, UNCOND: 1}  # place in a guider's pairs of (prompt, negative prompt)
TRAIN_STEPS = 1000


class HeadPerturbationGuidance(BaseGuidance):
    """Classifier-free guidance and guidance by perturbed heads: `v_c + (g - 1)(v_c - v_u) + w (v_c - v_p)`.

    The formula is that of [`guide`], with and without classifier-free guidance. Use a guider in one thread at a time.

    Args:
        heads, layers, skip_blocks (*optional*): as in [`guide`]; at least one of the three is required.
        guidance_scale (`float`, *optional*, defaults to 5.0): g; 1 turns classifier-free guidance off, and the
            negative prompt is not used.
        strength (`float`, *optional*, defaults to 1.0): as in [`guide`].
        enabled (`bool`, *optional*, defaults to `True`): False turns all guidance off.
        options (*optional*): the fields of [`GuidanceConfig`]: `start` and `stop` of the perturbed term; with
            `schedule_by="sigma"` the noise level is the timestep over 1000, as in flow matching.

    Raises:
        ValueError: options out of range; heads that the model does not have, in the first step.

    Example:

    ```python
    >>> guider = diffattn.HeadPerturbationGuidance(heads=[(7, 3), (9, 11)], scale=2.0, guidance_scale=5.0)
    >>> pipe.update_components(guider=guider)
    ```
    """

    _input_predictions = [COND, PERTURBED, UNCOND]

    @register_to_config
    @takes_guidance_options
    def __init__(
        self,
        heads: Any = None,
        layers: list[int | str] | None = None,
        skip_blocks: list[int | str] | None = None,
        guidance_scale: float = 5.0,
        strength: float | None = None,
        enabled: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(0.0, 1.0, enabled)
        if heads is None and layers is None and skip_blocks is None:
            raise ValueError("give heads=, layers= or skip_blocks=: a guider does not know its model beforehand")
        self.register_to_config(heads=_plain(heads), schedule=_plain_schedule(options.get("schedule")))
        self.guidance_scale = guidance_scale
        self._heads, self._layers, self._skip_blocks, self._strength = _read(heads), layers, skip_blocks, strength
        self._guidance = _settings(self._heads).changed(**options)
        if options.get("scale") is not None and self._guidance.apply_to == "uncond":
            raise ValueError("scale has no meaning with apply_to='uncond': guidance_scale counts")
        self._perturber: Perturber | None = None
        self._phases: dict[int, Phase] = {}
        self._prefix: Prefix | None = None
        self._pass = COND
        self._cleanup = ExitStack()

    @property
    def is_conditional(self) -> bool:
        return self._pass != UNCOND

    @property
    def num_conditions(self) -> int:
        return len(self.active_predictions())

    def active_predictions(self) -> list[str]:
        """The passes of this step, in order."""
        if not self._enabled:
            return [COND]
        extra = self._guidance.apply_to == "cond" and self._entry() is not None
        return [COND, *[PERTURBED] * extra, *[UNCOND] * (self.guidance_scale != 1)]

    def prepare_inputs(self, data: dict) -> list:
        return [self._prepare_batch(data, CONDITIONING[name], name) for name in self.active_predictions()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict) -> list:
        names = self.active_predictions()
        return [self._prepare_batch_from_block_state(input_fields, data, CONDITIONING[name], name) for name in names]

    def prepare_models(self, denoiser: nn.Module) -> None:
        self._pass = self.active_predictions()[self._count_prepared]
        super().prepare_models(denoiser)
        entry = self._entry() if self._enabled else None
        if entry is None:
            return
        self._learn(unwrap_module(denoiser))
        phase = self._phases[entry[0]]
        self._cleanup = ExitStack()
        _once(denoiser, lambda args, kwargs: self._within(phase, args, kwargs), self._cleanup)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._cleanup.close()

    def forward(
        self, pred_cond: Tensor, pred_cond_perturbed: Tensor | None = None, pred_uncond: Tensor | None = None
    ) -> GuiderOutput:
        entry, self._prefix = self._entry() if self._enabled else None, None
        options = {} if entry is None else {"scale": self._guidance.scale, "rescale": self._guidance.rescale}
        options |= {name: entry[1][name] for name in options if name in entry[1]}
        pred = combine(pred_cond, pred_cond_perturbed, pred_uncond, guidance_scale=self.guidance_scale, **options)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _entry(self) -> tuple[int, dict] | None:
        """The schedule's entry of this step, None where the perturbed term is off."""
        if self._step is None:
            return -1, {}
        sigma = None if self._timestep is None else float(self._timestep.flatten()[0]) / TRAIN_STEPS
        entry = self._guidance.phase(self._step, self._num_inference_steps, sigma)
        if entry is None or self._guidance.apply_to == "uncond":
            return entry
        return entry if entry[1].get("scale", self._guidance.scale) else None

    def _within(self, phase: Phase, args: tuple, kwargs: dict) -> AbstractContextManager:
        """What the forward of the pass at hand runs in."""
        self._perturber.begin(args, kwargs)
        if self._pass == PERTURBED:
            return self._perturber.perturbing(phase.selection, self._prefix)
        if self._guidance.apply_to == "uncond":
            return self._perturber.perturbing(phase.selection) if self._pass == UNCOND else nullcontext()
        return self._recording(phase) if self._pass == COND else nullcontext()

    def _recording(self, phase: Phase) -> AbstractContextManager:
        within = ExitStack()
        self._prefix = within.enter_context(self._perturber.recording(phase.selection))
        return within

    def _learn(self, denoiser: nn.Module) -> None:
        """Resolve the heads for the model that is guided."""
        if self._perturber is not None and self._perturber.transformer is denoiser:
            return
        perturber = Perturber(denoiser)
        heads = self._heads.heads(denoiser) if isinstance(self._heads, Preset) else self._heads
        chosen = {"layers": self._layers, "skip_blocks": self._skip_blocks, "strength": self._strength}
        resolved = resolve_heads(perturber.model, heads, guidance=self._guidance, **chosen)
        self._phases = make_phases(perturber.model, resolved)
        self._perturber = perturber


def _once(module: nn.Module, within: Callable[[tuple, dict], AbstractContextManager], cleanup: ExitStack) -> None:
    """Run this thread's next forward of `module` in a context; `cleanup` undoes it, also if that forward fails."""
    thread = threading.get_ident()

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if threading.get_ident() == thread:
            cleanup.enter_context(within(args, kwargs))

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        if threading.get_ident() == thread:
            cleanup.close()

    cleanup.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    cleanup.callback(module.register_forward_hook(after, always_call=True).remove)


def _read(heads: Any) -> Any:
    if isinstance(heads, dict) and "format" in heads:
        return HeadSet.from_dict(heads)
    if isinstance(heads, str):
        preset = find_preset(heads)
        return HeadSet.load(heads) if preset is None else preset
    return HeadSet.load(heads) if isinstance(heads, Path) else heads


def _settings(heads: Any) -> GuidanceConfig:
    if isinstance(heads, Preset):
        return GuidanceConfig(**heads.options)
    return heads.guidance if isinstance(heads, HeadSet) else GuidanceConfig()


def _plain(heads: Any) -> Any:
    """JSON-ready heads."""
    if isinstance(heads, HeadSet):
        return heads.to_dict()
    if isinstance(heads, dict) and "format" not in heads:
        pairs = [(head.split(":") if isinstance(head, str) else head, own) for head, own in heads.items()]
        return [[layer, int(head), own] for (layer, head), own in pairs]
    return [list(head) if isinstance(head, tuple) else head for head in heads] if isinstance(heads, list) else heads


def _plain_schedule(schedule: Any) -> Any:
    """JSON-ready entries."""
    return [list(entry) for entry in (schedule.items() if isinstance(schedule, dict) else schedule or ())] or None
