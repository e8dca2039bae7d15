"""How a pipeline does classifier-free guidance: which call of the transformer is the conditional one.

A pipeline combines `u + g (c - u)`. What is added to both c and u comes out as it went in, whatever g is: so the hook
never needs g, neither a changing one nor one that a pipeline keeps to itself.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import context_name

COND, UNCOND, BOTH = "cond", "uncond", "both"
NAMES = {"cond": COND, "uncond": UNCOND, "cond_uncond": BOTH}  # of cache contexts

# [uncond; cond] in one batch, and no cache context that says so
BATCHED = {
    *("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    *("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"),
    *("AllegroPipeline", "AnyFlowPipeline", "AuraFlowPipeline", "BriaPipeline", "BriaFiboPipeline"),
    *("CogView3PlusPipeline", "ConsisIDPipeline", "CosmosTextToWorldPipeline", "HiDreamImagePipeline"),
    *("EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline"),
    *("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
}
# the conditional call, then the unconditional one, and no cache context that says so
CALLS = {
    *("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline", "ChronoEditPipeline"),
    *("CogView4ControlPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline"),
    *("Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline"),
    *("FluxControlNetPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxKontextPipeline"),
    *("FluxKontextInpaintPipeline", "HunyuanSkyreelsImageToVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    *("HunyuanVideoFramepackPipeline", "Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2IPipeline"),
    *("Kandinsky5I2IPipeline", "WanVideoToVideoPipeline"),
}
DISTILLED = {
    *("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline", "FluxFillPipeline"),
    *("FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline", "Flux2Pipeline", "Flux2KleinKVPipeline"),
    "VisualClozeGenerationPipeline",
}
NORM = "it scales the result of classifier-free guidance to the norm of the conditional prediction"
OWN = "it has guidance of this kind of its own"
NOT_AFFINE = {
    **dict.fromkeys(("LongCatImagePipeline", "LongCatImageEditPipeline", "Lumina2Pipeline"), NORM),
    "HeliosPyramidPipeline": "it scales the unconditional prediction by a factor found from both",
}
FAMILIES_NOT_AFFINE = {
    "QwenImage": NORM,
    "ZImage": NORM,
    "LTX2": OWN,
    "StableDiffusion3PAG": OWN,
    "PixArtSigmaPAG": OWN,
}
SILENT = ("PixArt",)  # keep g to themselves
CHANGING = ("CogVideoX", "ConsisID")  # with use_dynamic_cfg
SCALED_BY_ONE_MORE = ("Cosmos",)  # c + g (c - u)


class PipelineCfg:
    """What the hook has to know of a pipeline.

    Args:
        pipe (`DiffusionPipeline`, *optional*): of the transformer; None for a transformer on its own, whose calls are
            conditional ones unless its `cache_context` names them otherwise.
        guidance_scale (`float`, *optional*): g where the pipeline does not tell.

    Raises:
        ValueError: a pipeline whose guidance is not of the form `u + g (c - u)`, or of which this is not known.
    """

    def __init__(self, pipe: Any = None, guidance_scale: float | None = None) -> None:
        self.name = "" if pipe is None else _denoising_class(type(pipe)).__name__
        self.guidance_scale = guidance_scale
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._last: tuple | None = None
        self._first: float | None = None
        self._refuse(pipe)

    @property
    def slices(self) -> bool:
        """Whether a batch of the transformer can be cut into samples; HiDream stacks texts by layer first."""
        return not self.name.startswith("HiDream")

    def kind(self, context: Any, inputs: dict, step: int | None) -> str:
        """`"cond"`, `"uncond"`, or `"both"` for [uncond; cond], of a call of the transformer."""
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
        """g of the run, needed for `rescale` only."""
        if self.guidance_scale is not None:
            return self.guidance_scale
        g = self._scale(transformer)
        first, self._first = self._first, g if step == 0 or self._first is None else self._first
        if self.name.startswith(CHANGING) and step and first not in (None, g):
            raise ValueError(f"{self.name} runs with use_dynamic_cfg=True, which rescale cannot follow")
        return g

    def _scale(self, transformer: nn.Module) -> float:
        pipe = self._pipe()
        second = getattr(pipe, "transformer_2", None) is transformer and getattr(pipe, "_guidance_scale_2", None)
        if self.name.startswith(("Flux", "Hunyuan")) or not hasattr(pipe, "guidance_scale"):
            raise ValueError(f"rescale needs the scale of classifier-free guidance in {self.name}: give cfg_scale=")
        return (second or pipe.guidance_scale) + self.name.startswith(SCALED_BY_ONE_MORE)

    @property
    def off(self) -> bool:
        """Whether this run is known to do no classifier-free guidance."""
        return getattr(self._pipe(), "do_classifier_free_guidance", None) is False

    def _on(self) -> bool:
        """Whether the pipeline does classifier-free guidance in this run."""
        pipe = self._pipe()
        if self.name.startswith(SILENT):
            return self.guidance_scale > 1
        if hasattr(pipe, "do_classifier_free_guidance"):
            return pipe.do_classifier_free_guidance
        return pipe is not None and getattr(pipe, "guidance_scale", 0) > 1

    def _of_two(self, inputs: dict, step: int | None) -> str:
        latents, text = inputs.get("hidden_states"), inputs.get("encoder_hidden_states")
        last, self._last = self._last, (COND, latents, text, step)
        if last is None or last[0] == UNCOND or last[3] != step:
            return COND
        pipe = self._pipe()
        if hasattr(pipe, "do_classifier_free_guidance"):
            second = pipe.do_classifier_free_guidance
        else:
            second = _same(latents, last[1]) and not _same(text, last[2])
        if second:
            self._last = (UNCOND, None, None, step)
        return UNCOND if second else COND

    def _check_run(self) -> None:
        if getattr(self._pipe(), "guidance_rescale", None):
            raise ValueError(
                f"{self.name} runs with guidance_rescale={self._pipe().guidance_rescale}, which is not affine: leave "
                "it at 0 and give diffattn.guide(rescale=) instead"
            )

    def _refuse(self, pipe: Any) -> None:
        if pipe is None:
            return
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
        if self.name.startswith(SILENT) and self.guidance_scale is None:
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
