"""Runs that do not start at the first step, or have few: the step is the scheduler's, and dense where it says."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanVideoToVideoPipeline
from PIL import Image
from wan import run, text_to_video, tiny_transformer, tiny_vae

import diffattn
from diffattn import Schedule
from diffattn.integration.session import SparseSession

from .own_block import OwnBlockConfig
from .pipeline_builders import PIPELINES, case

ONE = Schedule(dense_start=1, dense_layers=0)


def euler():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@pytest.fixture
def logged(monkeypatch):
    """Steps as the session heard of them before each forward, and as the scheduler took them after it."""
    told, taken = [], []
    begin = SparseSession.begin_forward

    def note(self, *args, **kwargs):
        told.append(self.state.step)
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(SparseSession, "begin_forward", note)

    def watch(pipe):
        step = pipe.scheduler.step

        def counted(*args, **kwargs):
            out = step(*args, **kwargs)
            taken.append((pipe.scheduler.step_index - 1, len(pipe.scheduler.timesteps)))
            return out

        pipe.scheduler.step = counted
        return told, taken

    return watch


def calls(pipe):
    return {(layer.sparse_calls, layer.dense_calls["dense step"]) for layer in diffattn.summary(pipe).models[0].layers}


@pytest.mark.parametrize("scheduler", [euler, unipc])
def test_video_to_video_begins_late(scheduler, logged):
    pipe = WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=tiny_vae(), transformer=tiny_transformer(1), scheduler=scheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    diffattn.enable(pipe, OwnBlockConfig(), schedule=Schedule(dense_start=3, dense_layers=0))
    told, taken = logged(pipe)
    for _ in range(2):
        embeds = torch.randn(2, 1, 12, 16)
        latents = torch.randn(1, 16, 3, 18, 20)
        pipe(
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            latents=latents,
            height=144,
            width=160,
            num_inference_steps=5,
            strength=0.6,
            output_type="latent",
        )
    assert taken == [(2, 5), (3, 5), (4, 5)] * 2
    # conditional and unconditional
    assert told == [step for step in taken for _ in range(2)]
    assert calls(pipe) == {(8, 4)}


def test_image_to_image_begins_late(logged):
    torch.manual_seed(0)
    vae = AutoencoderKL(latent_channels=1, norm_num_groups=4, block_out_channels=(4,), shift_factor=0.0)
    pipe = diffusers.FluxImg2ImgPipeline(
        scheduler=euler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=case("Flux").build(),
    )
    pipe.set_progress_bar_config(disable=True)
    diffattn.enable(pipe, OwnBlockConfig(), schedule=Schedule(dense_start=3, dense_layers=0))
    told, taken = logged(pipe)
    pipe(
        image=Image.new("RGB", (32, 24), "red"),
        height=24,
        width=32,
        prompt_embeds=torch.randn(1, 7, 16),
        pooled_prompt_embeds=torch.randn(1, 16),
        num_inference_steps=5,
        strength=0.8,
        output_type="latent",
    )
    assert told == taken == [(1, 5), (2, 5), (3, 5), (4, 5)]
    assert calls(pipe) == {(2, 2)}


@pytest.mark.parametrize("scheduler", [euler, unipc])
def test_four_steps_without_guidance(scheduler, logged):
    """As distilled LoRAs run: 4 steps, no unconditional call; a fifth of them is one step."""
    pipe = text_to_video(transformer=tiny_transformer(1))
    pipe.register_modules(scheduler=scheduler())
    diffattn.enable(pipe, OwnBlockConfig(), schedule=Schedule(dense_layers=0))
    told, taken = logged(pipe)
    run(pipe, steps=4, guidance_scale=1.0)
    assert told == taken == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert calls(pipe) == {(3, 1)}


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "guidance-distilled"])
def test_four_steps_of_given_sigmas(distilled, logged):
    made = next(pipeline for pipeline in PIPELINES if pipeline.name == "FluxPipeline")
    pipe = type(made)(**{**vars(made), "changes": {"guidance_embeds": distilled}}).build()
    diffattn.enable(pipe, OwnBlockConfig(), schedule=ONE)
    told, taken = logged(pipe)
    made.run(pipe, steps=4, sigmas=[1.0, 0.9, 0.6, 0.3], guidance_scale=3.5)
    assert told == taken == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert calls(pipe) == {(3, 1)}
