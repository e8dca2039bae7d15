"""Pipelines that do not say which call is conditional, and such whose batch cannot be cut."""

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from models.builders import case

from diffattn.guidance import combine, guide, guided, resolve_heads
from diffattn.guidance.engine import Perturber
from diffattn.models.classifier_free import BATCHED, CALLS, DISTILLED, NOT_AFFINE

HEADS = {(0, 1): 0.6, (1, 0): 1.0}
MASKS = {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}
PROMPTS = {"prompt_embeds": (1, 7, 16), "negative_prompt_embeds": (1, 7, 16)}
POOLED = {"pooled_prompt_embeds": (1, 16), "negative_pooled_prompt_embeds": (1, 16)}
# pipeline: transformer, its changes, arguments, embeddings, g, calls of a step
RUNS = {
    "ChromaPipeline": ("Chroma", {}, {**MASKS, "guidance_scale": 3.0}, PROMPTS, 3.0, 2),
    "FluxKontextPipeline": ("Flux", {}, {"true_cfg_scale": 3.0, "max_area": 128 * 128}, {**PROMPTS, **POOLED}, 3.0, 2),
    "AuraFlowPipeline": ("AuraFlow", {}, {**MASKS, "guidance_scale": 3.0}, PROMPTS, 3.0, 1),
    "PixArtSigmaPipeline": (
        "PixArt",
        {},
        {**MASKS, "guidance_scale": 3.0, "use_resolution_binning": False, "negative_prompt": None},
        PROMPTS,
        3.0,
        1,
    ),
    "HiDreamImagePipeline": (
        "HiDreamImage",
        {},
        {"guidance_scale": 3.0},
        {
            f"{sign}{name}": shape
            for sign in ("", "negative_")
            for name, shape in {
                "prompt_embeds_t5": (1, 7, 16),
                "prompt_embeds_llama3": (2, 1, 7, 16),
                "pooled_prompt_embeds": (1, 16),
            }.items()
        },
        3.0,
        1,
    ),
}


def build(name):
    transformer, changes, *_ = RUNS[name]
    made = case(transformer)
    model = type(made)(**{**vars(made), "config": {**made.config, **changes}}).build()
    cls = getattr(diffusers, name)
    scheduler = DPMSolverMultistepScheduler() if "PixArt" in name else FlowMatchEulerDiscreteScheduler()
    pipe = cls(**{**dict.fromkeys(cls._get_signature_keys(cls)[0]), "transformer": model, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 16  # HiDream makes images of this area
    return pipe


def run(pipe, name, **changes):
    torch.manual_seed(2)
    embeds = {key: torch.randn(shape) for key, shape in RUNS[name][3].items()}
    options = {"height": 128, "width": 128, "output_type": "latent", "return_dict": False, "num_inference_steps": 2}
    return pipe(**{**RUNS[name][2], **embeds, **options, **changes}, generator=torch.Generator().manual_seed(3))[0]


@pytest.mark.parametrize("name", RUNS)
def test_the_formula_where_calls_have_no_names(name):
    pipe, g, each = build(name), *RUNS[name][4:]
    calls, results, step = [], [], pipe.scheduler.step
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, {**kwargs, "return_dict": False})), with_kwargs=True
    )
    pipe.scheduler.step = lambda result, *args, **kwargs: results.append(result) or step(result, *args, **kwargs)
    if name.startswith("PixArt"):
        with pytest.raises(ValueError, match="does not tell its guidance_scale: give cfg_scale="):
            guide(pipe, HEADS)
    with guided(pipe, HEADS, scale=2.0, cfg_scale=g) as guidance:
        run(pipe, name)
        assert guidance.passes == 2
    handle.remove()
    perturber = Perturber(pipe.transformer)
    made = resolve_heads(perturber.model, HEADS)

    @torch.no_grad()
    def predict(args, kwargs):
        return pipe.transformer(*args, **kwargs)[0]

    for at, result in enumerate(results):
        own = calls[each * at : each * (at + 1)]
        found = [predict(*call) for call in own]
        perturber.begin(*own[0])
        with perturber.perturbing(made.select(perturber.model, made.guidance)):
            perturbed = predict(*own[0])
        if each == 1:
            uncond, cond, perturbed = *found[0].chunk(2), perturbed.chunk(2)[1]
        else:
            cond, uncond = found
        wanted = combine(cond, perturbed, uncond, scale=2.0, guidance_scale=g)
        wanted = -wanted if name.startswith("HiDream") else wanted
        torch.testing.assert_close(result, wanted[:, : result.shape[1]], rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_single_steps_and_runs_without_cfg_are_not_mistaken_for_the_second_call():
    pipe = build("FluxKontextPipeline")
    off = {"true_cfg_scale": 1.0}
    with guided(pipe, HEADS) as guidance:
        first = run(pipe, "FluxKontextPipeline", num_inference_steps=1, **off)
        again = run(pipe, "FluxKontextPipeline", num_inference_steps=1, **off)
        assert torch.equal(first, again) and guidance.passes == 2
        run(pipe, "FluxKontextPipeline", num_inference_steps=1)
        run(pipe, "FluxKontextPipeline", num_inference_steps=1)
        assert guidance.passes == 4


def test_every_pipeline_named_is_one_of_diffusers():
    for name in BATCHED | CALLS | DISTILLED | set(NOT_AFFINE):
        assert hasattr(diffusers, name), name
    assert not BATCHED & CALLS and not (BATCHED | CALLS) & DISTILLED
