"""What a user replaces after `enable` is asked for when the pipeline runs: schedulers above all."""

from __future__ import annotations

import gc

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
    WanVideoToVideoPipeline,
)
from diffusers.hooks.hooks import CacheContext
from models.pipeline_builders import PIPELINES
from wan import TEXT, tiny_transformer, tiny_vae

import diffattn
from diffattn import PyramidConfig, Schedule
from diffattn.integration.hook import find_hook
from diffattn.integration.progress import PresentScheduler, find_step

TWO = Schedule(dense_start=2, dense_layers=0)
OWN = PyramidConfig(density=0.5)


def watched_steps(transformer):
    """Steps of the session at every forward of the transformer."""
    seen, session = [], find_hook(transformer).handler
    transformer.register_forward_hook(lambda *_: seen.append((session.state.step, session.state.dense_step)))
    return seen


def another(scheduler):
    return type(scheduler).from_config(scheduler.config)


@pytest.mark.parametrize("when", ["before enable", "after enable", "after a run"])
@pytest.mark.parametrize("at", PIPELINES, ids=lambda at: at.name)
def test_a_scheduler_that_is_swapped_tells_the_step(at, when):
    pipe = at.build()
    if when == "before enable":
        pipe.scheduler = another(pipe.scheduler)
    diffattn.enable(pipe, OWN, schedule=TWO, impl="torch")
    if when == "after a run":
        at.run(pipe)
    if when != "before enable":
        pipe.scheduler = another(pipe.scheduler)
    seen = watched_steps(pipe.transformer)
    at.run(pipe)
    forwards = len(seen) // 5  # of a step
    assert seen == [((step, 5), step < 2) for step in range(5) for _ in range(forwards)]


@pytest.mark.parametrize("when", ["before enable", "after enable", "after a run"])
def test_a_run_that_begins_late_follows_the_new_scheduler(when):
    def unipc(shift):
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)

    parts = {"tokenizer": None, "text_encoder": None, "vae": tiny_vae(), "transformer": tiny_transformer(1)}
    pipe = WanVideoToVideoPipeline(**parts, scheduler=unipc(5.0))
    pipe.set_progress_bar_config(disable=True)

    def run():
        embeds = torch.randn(2, 1, 12, TEXT)
        latents = torch.randn(1, 16, 3, 18, 20)
        sizes = {"height": 144, "width": 160, "num_inference_steps": 5, "strength": 0.6, "output_type": "latent"}
        pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], latents=latents, **sizes)

    if when == "before enable":
        pipe.scheduler = unipc(3.0)
    diffattn.enable(pipe, OWN, schedule=Schedule(dense_start=3, dense_layers=0), impl="torch")
    if when == "after a run":
        run()
    if when != "before enable":
        pipe.scheduler = unipc(3.0)
    seen = watched_steps(pipe.transformer)
    run()
    assert seen == [((step, 5), step < 3) for step in (2, 3, 4) for _ in range(2)]


def test_a_second_order_scheduler_calls_twice_a_step():
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "StableDiffusion3Pipeline")
    pipe = at.build()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=5.0)
    diffattn.enable(pipe, OWN, schedule=Schedule(dense_start=2, dense_end=1, dense_layers=0), impl="torch")
    seen = watched_steps(pipe.transformer)
    at.run(pipe)
    assert seen == [((call // 2, 5), call // 2 in (0, 1, 4)) for call in range(9)]


def test_calls_that_a_pipeline_announces_are_steps_of_its_scheduler():
    """A `CacheContext` counts timesteps, of which a second-order scheduler has two a step."""
    said = CacheContext("cond", step_index=5, num_inference_steps=9)
    assert find_step(said, FlowMatchHeunDiscreteScheduler(), None) == (2, 5)
    assert find_step(said, None, None) == (5, 9)


def test_a_scheduler_is_held_weakly_and_one_that_never_ran_knows_no_step(caplog):
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "FluxPipeline")
    pipe = at.build()
    present = PresentScheduler(pipe)
    assert present() is pipe.scheduler
    scheduler = pipe.scheduler
    del pipe
    gc.collect()
    assert present() is scheduler
    del scheduler
    gc.collect()
    assert present() is None
    other, pipe = at.build(), at.build()
    diffattn.enable(pipe, OWN, schedule=TWO, impl="torch")
    other.transformer = pipe.transformer  # runs with a scheduler that nobody told diffattn of
    seen = watched_steps(pipe.transformer)
    at.run(other)
    assert seen == [(None, False)] * 5


def test_a_transformer_that_is_replaced_is_dense_until_it_is_enabled():
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "FluxPipeline")
    pipe, other = at.build(), at.build()
    plain = at.run(pipe)
    diffattn.enable(pipe, OWN, schedule=TWO, impl="torch")
    pipe.transformer = other.transformer
    assert torch.equal(at.run(pipe), plain)
    assert "not enabled" in str(diffattn.summary(pipe))
    diffattn.enable(pipe, OWN, schedule=TWO, impl="torch")
    assert not torch.equal(at.run(pipe), plain)
