"""The guider, and that it does right what diffusers' own guiders of this kind do wrong on transformers."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15, FlowMatchEulerDiscreteScheduler, HunyuanVideo15Pipeline
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from explicit import ExplicitAttention, interpolate, seg
from models.builders import CASES, case
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn import GuidanceConfig, HeadPerturbationGuidance
from diffattn._compat import register_backend
from diffattn.guidance import combine, guided, map_model, resolve_heads
from diffattn.guidance.engine import Perturber
from diffattn.models import adapter_named

FAMILIES = ["SD3", "SD3-3.5", "Flux", "Wan", "HunyuanVideo", "CogVideoX", "LTXVideo"]
HEADS = {(0, 1): 0.6, (1, 0): 1.0}


class Loop:
    """What modular pipelines and pipelines with a guider do in a step."""

    def __init__(self, name):
        self.model = case(name).build()
        torch.manual_seed(1)
        self.inputs = {**case(name).inputs(), "return_dict": False}
        self.prompts = (self.inputs["encoder_hidden_states"], torch.randn_like(self.inputs["encoder_hidden_states"]))

    @torch.no_grad()
    def predict(self, prompt):
        return self.model(**{**self.inputs, "encoder_hidden_states": prompt})[0]

    def __call__(self, guider, step=0, steps=2, prompts=None):
        guider.set_state(step, steps, torch.tensor(500.0))
        batches = guider.prepare_inputs({"encoder_hidden_states": prompts or self.prompts})
        assert len(batches) == guider.num_conditions
        for batch in batches:
            guider.prepare_models(self.model)
            assert guider.is_conditional == (getattr(batch, guider._identifier_key) != "pred_uncond")
            batch.noise_pred = self.predict(batch.encoder_hidden_states)
            guider.cleanup_models(self.model)
        assert not self.model._forward_hooks and not self.model._forward_pre_hooks
        return guider(batches).pred

    def perturbed(self, prompt, heads=HEADS, **chosen):
        perturber = Perturber(self.model)
        perturber.begin((), self.inputs)
        made = resolve_heads(perturber.model, heads, **chosen)
        with perturber.perturbing(made.select(perturber.model, made.guidance)):
            return self.predict(prompt)


_loops = {}


@pytest.fixture(params=FAMILIES)
def loop(request):
    if request.param not in _loops:
        _loops[request.param] = Loop(request.param)
    return _loops[request.param]


def close(got, wanted, atol=1e-5):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def test_it_is_the_formula_on_every_family(loop):
    """diffusers' PAG guider raises on all of these: their processors are not in its registry."""
    cond, uncond = map(loop.predict, loop.prompts)
    perturbed = loop.perturbed(loop.prompts[0])
    assert (cond - perturbed).abs().max() > 1e-3
    for g in (1.0, 4.0):
        for rescale in (0.0, 0.7):
            guider = HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=g, rescale=rescale)
            close(loop(guider), combine(cond, perturbed, uncond, scale=2.0, guidance_scale=g, rescale=rescale))


def test_the_scale_means_the_same_with_and_without_cfg_as_in_the_hook(loop):
    """diffusers' guiders mean `w` with classifier-free guidance and `1 + w` without."""
    with torch.no_grad(), guided(loop.model, HEADS, scale=2.0):
        hook = loop.predict(loop.prompts[0])
    off = loop(HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=1.0))
    close(off, hook)
    cond, uncond = map(loop.predict, loop.prompts)
    on = loop(HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=4.0))
    close(on - 3.0 * (cond - uncond), hook)


def test_without_cfg_the_negative_prompt_is_never_used(loop):
    """diffusers' PAG, SEG and SLG guiders take it for the perturbed prediction."""
    poison = (loop.prompts[0], torch.full_like(loop.prompts[1], torch.nan))
    guider = HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=1.0)
    assert loop(guider, prompts=poison).isfinite().all() and guider.num_conditions == 2


def test_skipped_blocks_return_hidden_and_text_states_in_the_blocks_order(loop):
    """diffusers' skip hook swaps them where blocks return the text first, and layer dropout fails on tuples."""
    guider = HeadPerturbationGuidance(skip_blocks=[1], scale=2.0, guidance_scale=1.0)
    cond = loop.predict(loop.prompts[0])
    perturbed = loop.perturbed(loop.prompts[0], None, skip_blocks=[1])
    close(loop(guider), combine(cond, perturbed, scale=2.0))


def test_an_exception_in_any_pass_leaves_no_hook(loop):
    """diffusers' hooks stay installed."""
    guider = HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=4.0)
    wanted, plain = loop(guider), loop.predict(loop.prompts[0])
    processors = [loop.model.get_submodule(name).processor for name in map_model(loop.model).layers]
    last = loop.model.get_submodule(map_model(loop.model).blocks[-1])
    for fail_at in range(3):
        count = iter(range(9))
        handle = last.register_forward_pre_hook(
            lambda *_, count=count, fail_at=fail_at: 1 / 0 if next(count) == fail_at else None
        )
        with pytest.raises(ZeroDivisionError):
            loop(guider)
        handle.remove()
        assert not loop.model._forward_hooks and not loop.model._forward_pre_hooks
        now = [loop.model.get_submodule(name).processor for name in map_model(loop.model).layers]
        assert all(a is b for a, b in zip(processors, now))
        assert torch.equal(loop.predict(loop.prompts[0]), plain)
    assert torch.equal(loop(guider), wanted)


def test_seg_has_its_effect(loop):
    """diffusers' SEG guider never reaches its layers."""
    guider = HeadPerturbationGuidance(layers=1, scale=2.0, target="seg", guidance_scale=1.0)
    layer = list(map_model(loop.model).layers)[1]
    with ExplicitAttention(loop.model, {layer: interpolate(torch.ones(1, 2), seg)}):
        perturbed = loop.predict(loop.prompts[0])
    cond = loop.predict(loop.prompts[0])
    assert (cond - perturbed).abs().max() > 1e-3
    close(loop(guider), combine(cond, perturbed, scale=2.0))


def test_a_layer_may_be_a_number():
    """diffusers' guiders take the length of an int."""
    loop = Loop("Wan")
    one = loop(HeadPerturbationGuidance(layers=1, scale=2.0))
    assert torch.equal(one, loop(HeadPerturbationGuidance(layers=[1], scale=2.0)))
    assert torch.equal(one, loop(HeadPerturbationGuidance(layers=["blocks.1.attn1"], scale=2.0)))
    skipped = loop(HeadPerturbationGuidance(skip_blocks=1, scale=2.0))
    assert torch.equal(skipped, loop(HeadPerturbationGuidance(skip_blocks=[1], scale=2.0)))
    assert not torch.equal(skipped, one)


@pytest.mark.parametrize("name", [str(each) for each in CASES])
def test_heads_are_perturbed_in_every_supported_class(name):
    """diffusers' PAG hook installs on 6 transformer classes, none of them for video."""
    built = case(name)
    model = built.build()
    plain = built.run(model)
    if adapter_named(built.model).keys_alone:
        with pytest.raises(NotImplementedError, match="query and key sequences differ"), guided(model, [(1, 0)]):
            built.run(model)
        return
    with guided(model, [(1, 0)], scale=1.0):
        moved = built.run(model)
    assert (moved - plain).abs().max() > 1e-5 and torch.equal(built.run(model), plain)


def test_layers_are_counted_in_the_order_in_which_they_run():
    """diffusers' `fqn="auto"` depends on the hash seed where there are two lists of blocks."""
    for name in ("Flux", "HunyuanVideo", "AuraFlow", "HiDreamImage"):
        built, ran = case(name), []
        model = built.build()
        layers = list(map_model(model).layers)
        for layer in layers:
            model.get_submodule(layer).register_forward_pre_hook(lambda *_, layer=layer, ran=ran: ran.append(layer))
        built.run(model)
        assert ran == layers


def _explicit(query, key, value, attn_mask=None, scale=None, **options):
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)


@pytest.mark.parametrize("name", ["Flux", "Wan", "LTXVideo"])
def test_any_attention_backend_is_perturbed(name):
    """PAG by interception of SDPA does nothing, silently, on flash, sage and flex."""
    loop = Loop(name)
    guider = HeadPerturbationGuidance({(0, 1): 0.6, (1, 0): 1.0}, scale=2.0, guidance_scale=3.0)
    wanted = loop(guider)
    backend = register_backend("test-explicit", _explicit)
    for layer in map_model(loop.model).layers:
        loop.model.get_submodule(layer).processor._attention_backend = backend
    close(loop(guider), wanted)


def test_the_unperturbed_passes_of_sd35_are_untouched():
    """diffusers' PAG pipeline leaves out the norms of query and key there, and fails on the second attention."""
    loop = Loop("SD3-3.5")
    cond, uncond = map(loop.predict, loop.prompts)
    guider = HeadPerturbationGuidance(
        {(0, 0): 1.0, "transformer_blocks.1.attn2:1": 0.5}, scale=0.0, guidance_scale=3.0
    )
    assert torch.equal(loop(guider), combine(cond, None, uncond, guidance_scale=3.0))
    guider = HeadPerturbationGuidance({"transformer_blocks.1.attn2:1": 0.5}, scale=1.0, guidance_scale=1.0)
    assert not torch.equal(loop(guider), cond)


def test_window_schedule_uncond_and_off():
    loop = Loop("Wan")
    cond, uncond = map(loop.predict, loop.prompts)
    cfg = combine(cond, None, uncond, guidance_scale=3.0)
    guider = HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=3.0, start=0.5, rescale=0.7)
    assert torch.equal(loop(guider, step=0), cfg) and guider.num_conditions == 2
    assert not torch.equal(loop(guider, step=1), cfg) and guider.num_conditions == 3
    guider.disable()
    assert torch.equal(loop(guider, step=1), cond)
    guider = HeadPerturbationGuidance(HEADS, guidance_scale=3.0, schedule=[(0, 0.0), (1, {"heads": [(1, 1)]})])
    assert torch.equal(loop(guider, step=0), cfg)
    perturbed = loop.perturbed(loop.prompts[0], [(1, 1)])
    close(loop(guider, step=1), combine(cond, perturbed, uncond, scale=3.0, guidance_scale=3.0))
    guider = HeadPerturbationGuidance(HEADS, guidance_scale=3.0, schedule={0.9: 1.0, 0.5: 2.0}, schedule_by="sigma")
    close(loop(guider), combine(cond, loop.perturbed(loop.prompts[0]), uncond, scale=2.0, guidance_scale=3.0))
    guider = HeadPerturbationGuidance(skip_blocks=[1], apply_to="uncond", guidance_scale=3.0)
    worse = loop.perturbed(loop.prompts[1], None, skip_blocks=[1])
    close(loop(guider), worse + 3.0 * (cond - worse))
    assert guider.num_conditions == 2


def test_it_is_saved_and_loaded_with_its_heads(tmp_path):
    loop = Loop("Wan")
    made = resolve_heads(map_model(loop.model), HEADS, guidance=GuidanceConfig(scale=1.5, rows="image"))
    for heads in (HEADS, made, [(0, 1), (1, 0, 0.3)], "wan2.1-14b"):
        guider = HeadPerturbationGuidance(heads, guidance_scale=3.0, schedule={0.0: 1.0} if heads is HEADS else None)
        guider.save_pretrained(tmp_path)
        loaded = HeadPerturbationGuidance.from_pretrained(tmp_path)
        assert loaded.to_json_string() == guider.to_json_string()
        if heads != "wan2.1-14b":
            assert torch.equal(loop(loaded), loop(guider))
    with pytest.raises(ValueError, match=r"preset 'wan2.1-14b' is for WanTransformer3DModel with"):
        loop(loaded)


def test_bad_input():
    with pytest.raises(ValueError, match="give heads=, layers= or skip_blocks="):
        HeadPerturbationGuidance()
    with pytest.raises(ValueError, match="scale has no meaning"):
        HeadPerturbationGuidance(HEADS, apply_to="uncond", scale=1.0)
    with pytest.raises(ValueError, match=r"no layer 99: WanTransformer3DModel has layers 0..1"):
        Loop("Wan")(HeadPerturbationGuidance([(99, 0)]))


def test_a_pipeline_with_a_guider_is_served_by_it_and_refuses_the_hook():
    built = case("HunyuanVideo15")
    transformer = replace(built, config={**built.config, "in_channels": 9}).build()  # latents, known frames, mask
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1)
    parts = dict.fromkeys(HunyuanVideo15Pipeline._get_signature_keys(HunyuanVideo15Pipeline)[0])
    guider = HeadPerturbationGuidance(HEADS, scale=2.0, guidance_scale=4.0)
    parts.update(transformer=transformer, guider=guider, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler())
    pipe = HunyuanVideo15Pipeline(**parts)
    embeds = {}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        embeds |= {name: torch.randn(1, 7, 16), f"{name}_mask": torch.ones(1, 7)}
        embeds |= {f"{name}_2": torch.randn(1, 5, 8), f"{name}_mask_2": torch.ones(1, 5)}
    calls, results, step = [], [], pipe.scheduler.step
    transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    pipe.scheduler.step = lambda result, *args, **kwargs: results.append(result) or step(result, *args, **kwargs)
    pipe(height=64, width=96, num_frames=9, num_inference_steps=2, output_type="latent", **embeds)
    assert len(calls) == 6 and calls[3]["encoder_hidden_states"] is calls[4]["encoder_hidden_states"]
    perturber = Perturber(transformer)
    perturber.begin((), calls[3])
    heads = resolve_heads(perturber.model, HEADS)
    with torch.no_grad():
        cond, uncond = transformer(**calls[3])[0], transformer(**calls[5])[0]
        with perturber.perturbing(heads.select(perturber.model, heads.guidance)):
            perturbed = transformer(**calls[4])[0]
    close(results[1], combine(cond, perturbed, uncond, scale=2.0, guidance_scale=4.0))
    with pytest.raises(ValueError, match=r"HunyuanVideo15Pipeline has a guider: give it diffattn.HeadPerturb"):
        diffattn.guide(pipe, HEADS)


def test_a_modular_pipeline_guided_by_it_is_the_pipeline_guided_by_the_hook():
    built = next(each for each in PIPELINES if each.name == "StableDiffusion3Pipeline")
    pipe = built.build()
    torch.manual_seed(4)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = {name: torch.randn(1, 16) if "pooled" in name else torch.randn(1, 7, 16) for name in names}
    latents = torch.randn(1, 4, 12, 16)
    options = {"num_inference_steps": 3, "latents": latents, **embeds}
    with guided(pipe, HEADS, scale=2.0, stop=0.7, rescale=0.4):
        sizes = {"height": 96, "width": 128, "guidance_scale": 4.0, "output_type": "latent", "return_dict": False}
        wanted = pipe(**options, **sizes)[0]
    guider = HeadPerturbationGuidance(HEADS, scale=2.0, stop=0.7, rescale=0.4, guidance_scale=4.0)
    modular = StableDiffusion3DenoiseStep().init_pipeline()
    modular.update_components(transformer=pipe.transformer, scheduler=pipe.scheduler, guider=guider)
    pipe.scheduler.set_timesteps(3)
    close(modular(**options, timesteps=pipe.scheduler.timesteps, output="latents"), wanted)
