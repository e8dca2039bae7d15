"""How a pipeline does classifier-free guidance: which call of the transformer is the conditional one.

A pipeline combines `u + g (c - u)`. A term that is added to both c and u is added to the result unchanged, whatever g
is. So the hook does not need g, which may change during a run or be hidden in the pipeline.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import context_name
from ..models.classifier_free import (
    AMBIGUOUS_SCALE,
    BATCHED,
    CALLS,
    CHANGING_SCALE,
    COND_FIRST,
    DISTILLED,
    FAMILIES_NOT_AFFINE,
    HIDDEN_SCALE,
    NOT_AFFINE,
    NOT_SLICED,
    SCALED_BY_ONE_MORE,
)
from .per_thread import PerThread

COND, UNCOND, BOTH = "cond", "uncond", "both"
# of cache contexts, those of guiders, and those of passes with the prompt that LTX-2 perturbs itself
NAMES = {
    **{"cond": COND, "uncond": UNCOND, "cond_uncond": BOTH, "pred_cond": COND, "pred_uncond": UNCOND},
    **dict.fromkeys(("pred_cond_skip", "uncond_stg", "uncond_modality"), COND),
}


class _Calls(PerThread):
    """What is known of earlier calls of the run of this thread."""

    def __init__(self) -> None:
        self.last: tuple | None = None  # kind, latents, text and step
        self.first_scale: float | None = None


class PipelineCfg:
    """The classifier-free guidance of a pipeline.

    Args:
        pipe (`DiffusionPipeline`, *optional*): of the transformer, held weakly. Without one, calls of the transformer
            are conditional unless their `cache_context` has another name.
        guidance_scale (`float`, *optional*): g where the pipeline does not reveal it.
        affine (`bool`, *optional*, defaults to `True`): whether something is to be added to its predictions, so that
            they must be combined as `u + g (c - u)`.

    Raises:
        ValueError: a pipeline that combines them in another way, or of which it is not known how.
    """

    def __init__(self, pipe: Any = None, guidance_scale: float | None = None, affine: bool = True) -> None:
        self.name = "" if pipe is None else _denoising_class(type(pipe)).__name__
        self.guidance_scale = guidance_scale
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._calls = _Calls()
        self._affine = affine
        if pipe is not None:
            if affine:
                self._refuse_not_affine(pipe)
            self._refuse_unknown(pipe)

    @property
    def slices(self) -> bool:
        """Whether a batch of the transformer can be cut into samples."""
        return not self.name.startswith(NOT_SLICED)

    def cond_samples(self, batch: int) -> slice:
        """The conditional half of a batch of both."""
        half = batch // 2
        return slice(0, half) if self.name.startswith(COND_FIRST) else slice(half, batch)

    def kind(self, context: Any, inputs: dict, step: int | None) -> str:
        """The kind of a call of the transformer: `"cond"`, `"uncond"`, or `"both"` for a batch [uncond; cond]."""
        if self._affine:
            self._check_run()
        name = context_name(context)
        named = NAMES.get(name)
        if named is not None:
            return COND if named == BOTH and not self._on() else named
        if context is not None and self.name:
            raise ValueError(f"{self.name} calls its transformer as {name!r}, which is not known here")
        if self.name in BATCHED:
            return BOTH if self._on() else COND
        return self._of_two(inputs, step) if self.name in CALLS else COND

    def scale(self, transformer: nn.Module, step: int | None) -> float:
        """g of this run; only `rescale` needs it."""
        if self.guidance_scale is not None:
            return self.guidance_scale
        g = self._scale(transformer)
        first = self._calls.first_scale
        if step == 0 or first is None:
            self._calls.first_scale = g
        if self.name.startswith(CHANGING_SCALE) and step and first not in (None, g):
            raise ValueError(f"{self.name} runs with use_dynamic_cfg=True, which rescale cannot follow")
        return g

    def _scale(self, transformer: nn.Module) -> float:
        pipe = self._pipe()
        second = getattr(pipe, "transformer_2", None) is transformer and getattr(pipe, "_guidance_scale_2", None)
        if self.name.startswith(AMBIGUOUS_SCALE) or not hasattr(pipe, "guidance_scale"):
            raise ValueError(f"rescale needs the scale of classifier-free guidance in {self.name}: give cfg_scale=")
        return (second or pipe.guidance_scale) + self.name.startswith(SCALED_BY_ONE_MORE)

    @property
    def off(self) -> bool:
        """Whether this run is known to do no classifier-free guidance."""
        return getattr(self._pipe(), "do_classifier_free_guidance", None) is False

    def _on(self) -> bool:
        """Whether the pipeline does classifier-free guidance in this run."""
        pipe = self._pipe()
        if hasattr(pipe, "do_classifier_free_guidance") and not self.name.startswith(HIDDEN_SCALE):
            return pipe.do_classifier_free_guidance
        scale = getattr(pipe, "guidance_scale", self.guidance_scale)
        if scale is None:
            raise ValueError(
                "diffattn.guide was called with another pipeline than the one that runs, or with none, so that it is "
                "not known whether there is classifier-free guidance: guide this pipeline, or give cfg_scale=, 1 for "
                "none"
            )
        return scale > 1

    def _of_two(self, inputs: dict, step: int | None) -> str:
        latents, text = inputs.get("hidden_states"), inputs.get("encoder_hidden_states")
        last, self._calls.last = self._calls.last, (COND, latents, text, step)
        if last is None or last[0] == UNCOND or last[3] != step:
            return COND
        pipe = self._pipe()
        if hasattr(pipe, "do_classifier_free_guidance"):
            second = pipe.do_classifier_free_guidance
        else:
            second = _same(latents, last[1]) and not _same(text, last[2])
        if second:
            self._calls.last = (UNCOND, None, None, step)
        return UNCOND if second else COND

    def _check_run(self) -> None:
        if getattr(self._pipe(), "guidance_rescale", None):
            raise ValueError(
                f"{self.name} runs with guidance_rescale={self._pipe().guidance_rescale}, which is not affine: leave "
                "it at 0 and give diffattn.guide(rescale=) instead"
            )

    def _refuse_not_affine(self, pipe: Any) -> None:
        if getattr(pipe, "guider", None) is not None:
            raise ValueError(
                f"{self.name} has a guider: give it diffattn.HeadPerturbationGuidance instead, "
                "`pipe.guider = diffattn.HeadPerturbationGuidance(...)`"
            )
        why = NOT_AFFINE.get(self.name) or next(
            (why for family, why in FAMILIES_NOT_AFFINE.items() if self.name.startswith(family)), None
        )
        if why is not None:
            raise ValueError(
                f"diffattn.guide cannot serve {self.name}: {why}, so that nothing can be added from outside. Use "
                "diffattn.HeadPerturbationGuidance with the modular pipeline of this family"
            )

    def _refuse_unknown(self, pipe: Any) -> None:
        if self.name.startswith(HIDDEN_SCALE) and self.guidance_scale is None:
            raise ValueError(f"{self.name} does not tell its guidance_scale: give cfg_scale= as well, 1 for none")
        if not self._known(pipe):
            raise ValueError(
                f"diffattn.guide does not know how {self.name} does classifier-free guidance. Known are pipelines "
                f"that name their calls by cache_context, and {', '.join(sorted(BATCHED | CALLS | DISTILLED))}"
            )

    def _known(self, pipe: Any) -> bool:
        if self.name in BATCHED | CALLS | DISTILLED:
            return True
        return "cache_context" in _names_in_call(_denoising_class(type(pipe)))


def _denoising_class(pipeline: type) -> type:
    """The class whose call denoises: not a subclass without a call, or whose call goes to `super()`."""
    owners = [cls for cls in pipeline.__mro__ if hasattr(vars(cls).get("__call__"), "__code__")]
    own = (cls for cls in owners if not {"super", "__call__"} <= _names_in_call(cls))
    return next(own, pipeline)


def _names_in_call(pipeline: type) -> set[str]:
    call = pipeline.__call__
    return set(getattr(call, "__wrapped__", call).__code__.co_names)


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    return both and first.shape == second.shape and torch.equal(first, second)
