"""diffattn.guide on real unmodified pipelines, against the formula written out."""

import copy
from dataclasses import replace

import pytest
import torch
import wan
from models.builders import case
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn import RadialConfig, Schedule
from diffattn.guidance import combine, guided, resolve_heads
from diffattn.guidance.engine import Perturber
from diffattn.guidance.model import map_model

CASES = {case.name: case for case in PIPELINES}
DUAL = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
CASES["SD3.5"] = replace(CASES["StableDiffusion3Pipeline"], changes=DUAL)
TRUE_CFG = {"negative_prompt_embeds": torch.ones(1, 7, 16), "true_cfg_scale": 3.0}
# pipeline, what it is run with, g, how it calls the transformer
RUNS = {
    "SD3, batched": ("StableDiffusion3Pipeline", {"guidance_scale": 4.0}, 4.0, "batch"),
    "SD3, no CFG": ("StableDiffusion3Pipeline", {"guidance_scale": 1.0}, 1.0, "single"),
    "SD3.5, batched": ("SD3.5", {"guidance_scale": 4.0}, 4.0, "batch"),
    "CogVideoX, batched": ("CogVideoXPipeline", {"guidance_scale": 6.0}, 6.0, "batch"),
    "LTX, batched": ("LTXPipeline", {"guidance_scale": 3.0}, 3.0, "batch"),
    "Mochi, batched": ("MochiPipeline", {"guidance_scale": 4.5}, 4.5, "batch"),
    "FLUX, distilled": ("FluxPipeline", {}, 1.0, "single"),
    "FLUX, two calls": (
        "FluxPipeline",
        {**TRUE_CFG, "negative_pooled_prompt_embeds": torch.ones(1, 16)},
        3.0,
        "calls",
    ),
    "HunyuanVideo, distilled": ("HunyuanVideoPipeline", {}, 1.0, "single"),
    "HunyuanVideo, two calls": (
        "HunyuanVideoPipeline",
        {
            **TRUE_CFG,
            "negative_pooled_prompt_embeds": torch.ones(1, 8),
            "negative_prompt_attention_mask": torch.ones(1, 7, dtype=torch.int64),
        },
        3.0,
        "calls",
    ),
}
HEADS = {(0, 1): 0.6, (1, 0): 1.0}
STEPS = 3


class Log:
    """The inputs of a pipeline's transformer calls and what it hands to the scheduler."""

    def __init__(self, pipe):
        self.pipe, self.calls, self.results = pipe, [], []
        self.handle = pipe.transformer.register_forward_pre_hook(self._note, with_kwargs=True)
        self.step = pipe.scheduler.step
        pipe.scheduler.step = self._step

    def _note(self, module, args, kwargs):
        self.calls.append({**kwargs, "return_dict": False})

    def _step(self, prediction, *args, **kwargs):
        self.results.append(prediction)
        return self.step(prediction, *args, **kwargs)

    def close(self):
        self.handle.remove()
        del self.pipe.scheduler.step


def explicit(transformer, calls, kind, g, scale, rescale=0.0, heads=HEADS):
    """The prediction of one step from whole passes of the unguided transformer."""
    perturber = Perturber(transformer)
    made = resolve_heads(map_model(transformer), heads)
    perturber.begin((), calls[0])
    with torch.no_grad():
        found = [transformer(**call)[0] for call in calls]
        with perturber.perturbing(made.select(perturber.model, made.guidance)):
            perturbed = transformer(**calls[0])[0]
    if kind == "batch":
        (uncond, cond), perturbed = found[0].chunk(2), perturbed.chunk(2)[1]
    else:
        cond, uncond = found[0], found[1] if kind == "calls" else None
    return combine(cond, perturbed, uncond, scale=scale, guidance_scale=g, rescale=rescale)


def close(got, wanted, atol=1e-5):
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=atol * max(1, float(wanted.abs().max())))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("name", RUNS)
def test_the_hook_is_the_formula_written_out(name, rescale):
    pipeline, options, g, kind = RUNS[name]
    pipe = CASES[pipeline].build()
    plain = CASES[pipeline].run(pipe, STEPS, **options)
    cfg_scale = g if kind == "calls" else None
    diffattn.guide(pipe, HEADS, scale=2.0, rescale=rescale, cfg_scale=cfg_scale)
    log = Log(pipe)
    latents = CASES[pipeline].run(pipe, STEPS, **options)
    log.close()
    diffattn.unguide(pipe)
    each = 2 if kind == "calls" else 1
    assert len(log.calls) == each * STEPS and not torch.equal(latents, plain)
    for step, result in enumerate(log.results):
        calls = log.calls[each * step : each * (step + 1)]
        close(result, explicit(pipe.transformer, calls, kind, g, 2.0, rescale))
    assert torch.equal(CASES[pipeline].run(pipe, STEPS, **options), plain)


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_wan_with_two_transformers_and_two_scales(rescale):
    low = wan.tiny_transformer()
    with torch.no_grad():
        low.proj_out.weight.mul_(0.5)
    pipe = wan.text_to_video(transformer_2=low, boundary_ratio=0.8)
    plain = wan.run(pipe, 4, guidance_scale_2=5.0)
    calls, results, step = [], [], pipe.scheduler.step
    for transformer in (pipe.transformer, low):
        transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((module, kwargs)), with_kwargs=True
        )
    pipe.scheduler.step = lambda prediction, *args, **kwargs: (
        results.append(prediction) or step(prediction, *args, **kwargs)
    )
    diffattn.guide(pipe, HEADS, scale=2.0, rescale=rescale)
    assert not torch.equal(wan.run(pipe, 4, guidance_scale_2=5.0), plain)
    diffattn.unguide(pipe)
    used = [calls[2 * at][0] for at in range(4)]
    assert used[0] is pipe.transformer and used[-1] is low
    for at, transformer in enumerate(used):
        g = 3.0 if transformer is pipe.transformer else 5.0
        inputs = [kwargs for _, kwargs in calls[2 * at : 2 * at + 2]]
        close(results[at], explicit(transformer, inputs, "calls", g, 2.0, rescale))


def test_strength_zero_and_scale_zero_are_bit_equal_to_no_guidance_and_cost_nothing():
    pipe = wan.text_to_video()
    plain = wan.run(pipe, 2)
    for options in ({"strength": 0.0}, {"scale": 0.0}, {"start": 0.0, "stop": 0.0}):
        with guided(pipe, HEADS, **options) as run:
            assert torch.equal(wan.run(pipe, 2), plain) and run.passes == 0


@pytest.mark.parametrize("name", ["SD3", "SD3-3.5", "Flux", "Wan", "HunyuanVideo", "CogVideoX", "LTXVideo"])
def test_strength_zero_is_bit_equal_in_every_family_also_beside_a_perturbed_sample(name):
    built = case(name)
    model = built.build()
    torch.manual_seed(1)
    inputs = {**built.inputs(), "return_dict": False}
    with torch.no_grad(), guided(model, HEADS, strength=0.0) as run:
        plain = model(**inputs)[0]
        assert run.passes == 0
        run.set_heads_per_sample([HEADS, dict.fromkeys(HEADS, 0.0)])
        beside = model(**inputs)[0]
    with torch.no_grad():
        assert torch.equal(plain, model(**inputs)[0])
    assert torch.equal(beside[1], plain[1]) and not torch.equal(beside[0], plain[0])


def test_start_and_stop_are_parts_of_the_run():
    pipe = wan.text_to_video()
    with guided(pipe, HEADS, start=0.25, stop=0.75) as run:
        wan.run(pipe, 4)
        assert run.passes == 2
    with guided(pipe, HEADS) as run:
        wan.run(pipe, 4)
        assert (run.passes, run.cost) == (4, 4.0)
    with guided(pipe, [(2, 0)]) as run:
        wan.run(pipe, 4)
        assert run.cost == pytest.approx(4 / 3)


@pytest.mark.parametrize("by", ["step", "sigma"])
def test_a_schedule_changes_scale_and_heads(by):
    pipe = wan.text_to_video()
    wan.run(pipe, 4)
    when = [0, 2, 3] if by == "step" else pipe.scheduler.sigmas[[0, 2, 3]].tolist()
    schedule = list(zip(when, [{"scale": 0.0}, {"scale": 2.0}, {"scale": 1.0, "heads": [[2, 1]]}]))
    log = Log(pipe)
    with guided(pipe, HEADS, schedule=schedule, schedule_by=by) as run:
        wan.run(pipe, 4)
        assert run.passes == 2 and run.cost == pytest.approx(1 + 1 / 3)
    log.close()
    for step, (scale, heads) in enumerate([(0, HEADS), (0, HEADS), (2.0, HEADS), (1.0, [(2, 1)])]):
        wanted = explicit(pipe.transformer, log.calls[2 * step : 2 * step + 2], "calls", 3.0, scale, heads=heads)
        close(log.results[step], wanted)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "CogVideoXPipeline", "wan"])
def test_uncond_is_perturbed_without_any_extra_pass(name):
    made = None if name == "wan" else CASES[name]
    pipe = wan.text_to_video() if made is None else made.build()
    for chosen in ({"skip_blocks": [1]}, {"heads": HEADS}):
        log, forwards = Log(pipe), []
        handle = pipe.transformer.get_submodule(map_model(pipe.transformer).blocks[0]).register_forward_hook(
            lambda *_, forwards=forwards: forwards.append(1)
        )
        with guided(pipe, **{"heads": None, **chosen}, apply_to="uncond") as run:
            wan.run(pipe, 2) if made is None else made.run(pipe, 2)
            assert run.passes == 0 and len(forwards) == len(log.calls)
        log.close()
        handle.remove()
        transformer, g = pipe.transformer, pipe.guidance_scale
        perturber = Perturber(transformer)
        own = resolve_heads(perturber.model, **chosen)
        perturber.begin((), log.calls[0])
        with torch.no_grad():
            with perturber.perturbing(own.select(perturber.model, own.guidance)):
                perturbed = transformer(**log.calls[-1])[0]
            cond = transformer(**log.calls[-2 if made is None else -1])[0]
        if made is not None:
            perturbed, cond = perturbed.chunk(2)[0], cond.chunk(2)[1]
        close(log.results[-1], perturbed + g * (cond - perturbed))


def test_uncond_without_cfg_says_that_it_does_nothing(monkeypatch):
    said = []
    monkeypatch.setattr("diffattn.guidance.guidance_hook.logger.warning", said.append)
    pipe = wan.text_to_video()
    plain = wan.run(pipe, 2, guidance_scale=1.0)
    with guided(pipe, HEADS, apply_to="uncond"):
        assert torch.equal(wan.run(pipe, 2, guidance_scale=1.0), plain)
    assert len(said) == 1 and "without classifier-free guidance" in said[0]


def test_any_order_with_sparse_attention_and_the_very_same_processors():
    pipe = wan.text_to_video()
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    full, always = RadialConfig(density=1.0), Schedule(0, 0, 0)
    diffattn.guide(pipe, HEADS)
    alone = wan.run(pipe, 2)
    diffattn.enable(pipe, full, schedule=always)
    close(wan.run(pipe, 2), alone)
    assert diffattn.summary(pipe).to_dict()["dense_calls"] == {}
    diffattn.disable(pipe)
    assert torch.equal(wan.run(pipe, 2), alone)
    diffattn.unguide(pipe)
    diffattn.enable(pipe, "neighborhood", schedule=always)
    sparse = wan.run(pipe, 2)
    diffattn.guide(pipe, HEADS)
    assert not torch.equal(wan.run(pipe, 2), sparse)
    diffattn.unguide(pipe)
    assert torch.equal(wan.run(pipe, 2), sparse)
    diffattn.disable(pipe)
    assert all(a is b.attn1.processor for a, b in zip(processors, pipe.transformer.blocks))
    assert not pipe.transformer._forward_hooks and not pipe.transformer._diffusers_hook.hooks


def test_an_exception_leaves_no_guidance_behind_and_the_next_run_is_right():
    pipe = wan.text_to_video()
    plain = wan.run(pipe, 2)
    diffattn.guide(pipe, HEADS)
    wanted = wan.run(pipe, 2)
    processors = [block.attn1.processor for block in pipe.transformer.blocks]
    for fail_at in (0, 1):  # in the conditional pass, in the perturbed one
        count = iter(range(9))
        handle = pipe.transformer.blocks[2].register_forward_pre_hook(
            lambda *_, count=count, fail_at=fail_at: 1 / 0 if next(count) == fail_at else None
        )
        with pytest.raises(ZeroDivisionError):
            wan.run(pipe, 2)
        handle.remove()
        assert all(a is b.attn1.processor for a, b in zip(processors, pipe.transformer.blocks))
        assert all("forward" not in vars(block) for block in pipe.transformer.blocks)
        assert torch.equal(wan.run(pipe, 2), wanted)
    diffattn.unguide(pipe)
    assert torch.equal(wan.run(pipe, 2), plain)


def test_heads_by_sample_as_if_each_ran_with_its_own():
    pipe = CASES["FluxPipeline"].build()
    torch.manual_seed(2)
    embeds = {"prompt_embeds": torch.randn(2, 7, 16), "pooled_prompt_embeds": torch.randn(2, 16)}
    options = {"num_inference_steps": 2, "output_type": "latent", "return_dict": False, "height": 96, "width": 128}

    def images():
        return pipe(**embeds, generator=torch.Generator().manual_seed(3), **options)[0]

    with guided(pipe, scale=2.0) as run:
        plain = images()
        run.set_heads_per_sample([[(0, 1)], {(2, 0): 0.5}])
        each = images()
        run.set_heads_per_sample([[(0, 1)], []])
        first = images()
        run.set_heads([(0, 1)])
        both = images()
        with pytest.raises(ValueError, match="chosen for 3 samples, 2 are generated"):
            run.set_heads_per_sample([[(0, 1)]] * 3)
            images()
    assert torch.equal(first[0], each[0]) and torch.equal(first[1], plain[1])
    close(both[0], each[0])
    assert not torch.equal(each[1], plain[1])


def test_gradients_reach_all_heads_through_the_hook():
    transformer = case("Wan").build()
    torch.manual_seed(1)
    inputs = case("Wan").inputs()
    names = map_model(transformer).layers
    values = {name: torch.zeros(1, 2, requires_grad=True) for name in names}
    with guided(transformer, scale=2.0) as run:
        run.set_strengths(values)
        transformer(**inputs, return_dict=False)[0].square().sum().backward()
    assert all((u.grad.abs() > 0).all() for u in values.values())


def test_a_step_cache_keeps_both_passes_apart():
    from diffusers import FirstBlockCacheConfig

    fresh, pipe = wan.text_to_video(), wan.text_to_video()
    diffattn.guide(fresh, [(2, 0)])
    wanted = wan.run(fresh, 3)
    diffattn.guide(pipe, [(2, 0)])  # another one: diffusers 0.38 to 0.40 allow no step cache after a first run
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(wan.run(pipe, 3), wanted)
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    cached = wan.run(pipe, 3)
    assert cached.isfinite().all() and not torch.equal(cached, wanted)


def test_a_copy_of_a_guided_transformer_says_what_to_do():
    transformer = case("Wan").build()
    torch.manual_seed(1)
    inputs = case("Wan").inputs()

    @torch.no_grad()
    def predict(model):
        return model(**inputs, return_dict=False)[0]

    plain = predict(transformer)
    diffattn.guide(transformer, HEADS)
    guided_once = predict(transformer)
    with pytest.raises(RuntimeError, match="is a copy of one that diffattn guides"):
        predict(copy.deepcopy(transformer))
    assert torch.equal(predict(transformer), guided_once) and not torch.equal(guided_once, plain)
    diffattn.unguide(transformer)
    assert torch.equal(predict(copy.deepcopy(transformer)), plain)


def test_an_output_class_is_guided_like_a_tuple():
    transformer = case("Wan").build()
    torch.manual_seed(1)
    inputs = case("Wan").inputs()
    with torch.no_grad(), guided(transformer, HEADS):
        assert torch.equal(transformer(**inputs).sample, transformer(**inputs, return_dict=False)[0])


def test_compiled_blocks_serve_any_heads_with_the_same_graphs():
    torch._dynamo.reset()
    pipe = wan.text_to_video()
    chosen = [{(1, 0): 0.5, (2, 1): 1.0}, {(1, 1): 0.2, (2, 0): 0.7}]
    wanted = []
    for heads in chosen:
        with guided(pipe, heads):
            wanted.append(wan.run(pipe, 2))
    pipe.transformer.compile_repeated_blocks(backend="eager")
    graphs = []
    for heads, latents in zip(chosen, wanted):
        with guided(pipe, heads):
            close(wan.run(pipe, 2), latents)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] and not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_the_summary_tells_of_guidance_in_one_line_and_of_none_in_none():
    pipe = wan.text_to_video()
    plain = str(diffattn.summary(pipe))
    diffattn.guide(pipe, [(1, 0), (2, 1)], scale=2.0)
    wan.run(pipe, 2)
    line, rest = str(diffattn.summary(pipe)).split("\n")
    assert line == (
        "guidance  scale 2, heads 1:0 2:1, replays blocks 1 to 2, identity; 2 perturbed passes at the cost of 1.3"
    )
    assert rest == f"{plain}, attention is dense"
    diffattn.enable(pipe, "radial")
    assert line in str(diffattn.summary(pipe)).split("\n")
    assert diffattn.summary(pipe).to_dict()["guidance"][0]["phases"][0]["first_block"] == 1
    diffattn.guide(pipe, skip_blocks=[1], apply_to="uncond")
    said = "negative pass, skips blocks.1, identity; no pass added"
    assert f"guidance  {said}" in str(diffattn.summary(pipe))
    diffattn.guide(pipe, [(1, 0)], schedule={0.0: 1.0, 0.5: 3.0}, share_prefix=False)
    said = "scale 1, heads 1:0, replays blocks 0 to 2; then scale 3, heads 1:0, replays blocks 0 to 2, identity; 0"
    assert f"guidance  {said}" in str(diffattn.summary(pipe))
    diffattn.unguide(pipe)
    diffattn.disable(pipe)
    assert str(diffattn.summary(pipe)) == plain and "guidance" not in diffattn.summary(pipe).to_dict()
