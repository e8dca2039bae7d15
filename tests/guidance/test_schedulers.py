"""Steps are those of the scheduler that the pipeline has now, also where a step calls the model twice."""

import copy
import gc
import weakref

import pytest
import torch
import wan
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn.guidance import guided
from diffattn.guidance.guidance_hook import find_guidance

CASES = {case.name: case for case in PIPELINES}
HEADS = {(0, 1): 0.6, (1, 0): 1.0}


def scales_by_call(pipe, run):
    """w of every conditional call of the transformer, 0 without a perturbed pass."""
    hook, scales = find_guidance(pipe.transformer), []
    perturbed = hook._perturbed

    def note(module, args, kwargs):
        if getattr(hook.context, "name", None) != "uncond":
            scales.append(0.0)

    def note_perturbed(module, forward, *args):
        scales[-1] = forward.phase.scale
        return perturbed(module, forward, *args)

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    hook._perturbed = note_perturbed
    run()
    handle.remove()
    del hook._perturbed
    return scales


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "LTXPipeline", "MochiPipeline"])
def test_a_scheduler_put_in_later_is_the_one_that_counts(name):
    new = {"shift": 5.0}
    case = CASES[name]
    first, later = case.build(), case.build()
    first.scheduler = FlowMatchEulerDiscreteScheduler(**new)
    for pipe in (first, later):
        diffattn.guide(pipe, HEADS, start=0.5)
    wanted = case.run(first, 4)
    case.run(later, 3)
    old = weakref.ref(later.scheduler)
    later.scheduler = FlowMatchEulerDiscreteScheduler(**new)
    gc.collect()
    assert old() is None
    scales = scales_by_call(later, lambda: case.run(later, 4))
    assert scales == [0, 0, 3, 3] and torch.equal(case.run(later, 4), wanted)


def heun(name):
    pipe = wan.text_to_video() if name == "Wan" else CASES[name].build()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    return pipe, lambda: wan.run(pipe, 4) if name == "Wan" else CASES[name].run(pipe, 4)


@pytest.mark.parametrize("name", ["Wan", "StableDiffusion3Pipeline"])
def test_both_calls_of_a_second_order_step_are_of_that_step(name):
    pipe, run = heun(name)
    run()
    assert len(pipe.scheduler.timesteps) == 7
    sigmas = pipe.scheduler.sigmas[[0, 2, 4, 6]].tolist()
    options = {
        "start and stop": ({"start": 0.25, "stop": 0.75}, [0, 0, 3, 3, 3, 3, 0]),
        "steps": ({"schedule": {1: 1.0, 3: 2.0}}, [0, 0, 1, 1, 1, 1, 2]),
        "parts": ({"schedule": {0.25: 1.0, 0.75: 2.0}}, [0, 0, 1, 1, 1, 1, 2]),
    }
    if name != "Wan":  # which tells the noise level of each call
        by_sigma = {"schedule": {sigmas[1]: 1.0, sigmas[3]: 2.0}, "schedule_by": "sigma"}
        options["sigmas"] = (by_sigma, [0, 0, 1, 1, 1, 1, 2])
    for chosen, wanted in options.values():
        diffattn.guide(pipe, HEADS, **chosen)
        assert scales_by_call(pipe, run) == wanted


@pytest.mark.parametrize("name", ["Wan", "StableDiffusion3Pipeline"])
def test_a_second_order_run_is_guided_in_every_call(name):
    pipe, run = heun(name)
    plain = run()
    with guided(pipe, HEADS) as guidance:
        assert not torch.equal(run(), plain) and guidance.passes == 7


def test_a_copy_of_the_pipeline_has_to_say_how_it_is_guided():
    case = CASES["StableDiffusion3Pipeline"]
    pipe = case.build()
    diffattn.guide(pipe, HEADS)
    wanted = case.run(pipe, 2, guidance_scale=4.0)
    base = case.build()
    for cfg_scale in (None, 4.0):
        diffattn.guide(base, HEADS, cfg_scale=cfg_scale)
        request = copy.copy(base)
        if cfg_scale:
            assert torch.equal(case.run(request, 2, guidance_scale=4.0), wanted)
            continue
        with pytest.raises(ValueError, match=r"another pipeline than the one that runs.*give cfg_scale="):
            case.run(request, 2, guidance_scale=4.0)


def test_the_hook_does_not_keep_the_pipeline():
    pipe = wan.text_to_video()
    transformer = pipe.transformer
    diffattn.guide(pipe, HEADS)
    gone = weakref.ref(pipe), weakref.ref(pipe.scheduler)
    del pipe
    gc.collect()
    assert all(reference() is None for reference in gone)
    diffattn.unguide(transformer)
