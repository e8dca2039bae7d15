import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    FlowMatchHeunDiscreteScheduler,
)
from models.pipeline_builders import PIPELINES

from diffattn.guidance import GuidanceConfig
from diffattn.hunting import Objective, Sharpness
from diffattn.hunting.denoised import clean_sample, decode, observed_steps
from diffattn.hunting.gradient import GradientScreen
from diffattn.hunting.prompts import make_pairs
from diffattn.hunting.runner import Runner

ONE_STEP = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 3.0}
NARROW = {"latent_channels": 4, "block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "layers_per_block": 1}
EPS = 1e-2  # Wan rounds to float32 inside


def finite_difference(runner: Runner, selected: list[str], head: str) -> float:
    """Central difference of the score of the first pair in the strength of one head, by whole runs of the pipeline."""
    scores = []
    for sign in (1, -1):
        with runner.guided() as run:
            strengths = {layer: torch.zeros(1, heads) for layer, heads in run.model.layers.items()}
            for name, shift in [*((name, 1.0) for name in selected), (head, sign * EPS)]:
                layer, number = name.rsplit(":", 1)
                strengths[layer][0, int(number)] += shift
            run.set_strengths(strengths)
            scores.append(float(runner.judge(runner.generate(0, 1, run), 0)))
    return (scores[0] - scores[1]) / (2 * EPS)


def weighted_mean(videos, prompts):
    """Smooth, and different for every place."""
    weight = torch.linspace(-1, 2, videos[0].numel(), dtype=videos.dtype)
    return (videos.flatten(1).sin() * weight).sum(1)


@pytest.mark.parametrize("selected", [[], ["blocks.1.attn1:0"]])
def test_it_is_the_derivative_of_the_whole_pipeline_in_one_step(pipe, prompts, selected):
    # in one step the clean clip that the step points to is the result, so that nothing is truncated
    pipe.to(dtype=torch.float64)
    pipe.vae.to(dtype=torch.float64)
    inputs = {name: tensor.double() for name, tensor in prompts[0].items()}
    runner = Runner(pipe, Objective(weighted_mean), make_pairs([inputs]), GuidanceConfig(scale=2.0), options=ONE_STEP)
    found = GradientScreen(runner).gradients(selected, 0)
    assert list(found) == [f"blocks.{layer}.attn1:{head}" for layer in range(3) for head in range(2)]
    scale = max(map(abs, found.values()))
    for head in ("blocks.0.attn1:1", "blocks.1.attn1:0", "blocks.2.attn1:1"):
        assert found[head] == pytest.approx(finite_difference(runner, selected, head), abs=2e-3 * scale)


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "FluxPipeline", "StableDiffusion3Pipeline"])
def test_it_is_the_derivative_with_batched_guidance_and_without_any(name):
    case = next(case for case in PIPELINES if str(case) == name)
    pipe = case.build().to(dtype=torch.float64)
    torch.manual_seed(2)
    inputs = {key: torch.randn(shape, dtype=torch.float64) for key, shape in case.embeds.items()}
    options = {**case.inputs, "num_inference_steps": 1, "output_type": "latent"}
    runner = Runner(pipe, Objective(weighted_mean), make_pairs([inputs]), GuidanceConfig(scale=2.0), options=options)
    found = GradientScreen(runner).gradients([], 0)
    head = max(found, key=lambda head: abs(found[head]))
    assert found[head] == pytest.approx(finite_difference(runner, [], head), rel=1e-3)


def test_steps_count_by_the_noise_they_take_away(pipe, prompts):
    pipe.scheduler.set_timesteps(3)
    sample, output = torch.randn(2, 1, 3)
    sigmas, shares = pipe.scheduler.sigmas, []
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        clean, share = clean_sample(pipe.scheduler, output, sample, timestep)
        assert torch.allclose(clean, sample - sigmas[step] * output)
        shares.append(share)
        pipe.scheduler.step(output, timestep, sample)
    assert shares == pytest.approx([1 - float(sigmas[i + 1] / sigmas[i]) for i in range(3)]) and shares[-1] == 1


def test_one_pass_and_its_backward_pass_for_every_step(pipe, prompts):
    runner = Runner(pipe, Sharpness(), make_pairs(prompts), options={**ONE_STEP, "num_inference_steps": 3})
    before = [weight.requires_grad for weight in pipe.transformer.parameters()]
    GradientScreen(runner).gradients([], 0)
    assert runner.passes == 3 * (2 + 1 + 2)
    assert "step" not in vars(pipe.scheduler)
    assert [weight.requires_grad for weight in pipe.transformer.parameters()] == before
    assert all(weight.grad is None for weight in pipe.transformer.parameters())


def test_latents_are_decoded_as_the_pipeline_does(pipe, prompts):
    runner = Runner(pipe, Sharpness(), make_pairs(prompts), options=ONE_STEP)
    with runner.guided() as run:
        latents = runner.generate(0, 1, run, output_type="latent")
        clips = runner.generate(0, 1, run)
    with torch.no_grad():
        assert torch.allclose(decode(pipe, latents), clips, atol=1e-6)
    assert clips.shape == (1, 5, 3, 32, 32)


def narrow_vae(name: str):
    torch.manual_seed(0)
    if name == "StableDiffusion3Pipeline":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return AutoencoderKL(**NARROW, **blocks, scaling_factor=1.5, shift_factor=0.06)
    if name == "CogVideoXPipeline":
        blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
        return AutoencoderKLCogVideoX(**NARROW, **blocks)
    return AutoencoderKLHunyuanVideo(**NARROW, mid_block_add_attention=False)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "CogVideoXPipeline", "HunyuanVideoPipeline"])
def test_latents_of_other_families_are_decoded_as_their_pipelines_do(name):
    case = next(case for case in PIPELINES if str(case) == name)
    pipe = case.build()
    pipe = type(pipe)(**{**pipe.components, "vae": narrow_vae(name)})
    inputs = {key: torch.randn(shape) for key, shape in case.embeds.items()}
    runner = Runner(pipe, Sharpness(), make_pairs([inputs]), options={**case.inputs, "num_inference_steps": 1})
    with runner.guided() as run:
        latents = runner.generate(0, 1, run, output_type="latent")
        clips = runner.generate(0, 1, run)
    with torch.no_grad():
        latents = latents[:, 0] if name == "StableDiffusion3Pipeline" else latents
        found = decode(pipe, latents)
        pipe.vae.double()
        exact = decode(pipe, latents)
    # pipelines multiply by 1 / scaling_factor, which rounds otherwise: both are as far from float64
    error, allowed = ((made - exact).abs().max() for made in (found, clips))
    assert error <= 2 * allowed < 1e-4 and clips.std() > 0.1


def test_what_it_cannot_do_is_said(pipe, prompts):
    def run(objective, guidance=None, pipe=pipe, decode=None):
        runner = Runner(pipe, Objective(objective), make_pairs(prompts), guidance, options=ONE_STEP)
        return GradientScreen(runner, decode).gradients([], 0)

    with pytest.raises(ValueError, match="not differentiable: use screen=None"):
        run(lambda videos, prompts: videos.detach().mean((1, 2, 3, 4)))
    for guidance in (GuidanceConfig(rescale=0.5), GuidanceConfig(apply_to="uncond")):
        with pytest.raises(ValueError, match="needs apply_to='cond' and rescale=0"):
            run(weighted_mean, guidance)
    with pytest.raises(ValueError, match="does not know how FluxPipeline decodes latents: give decode="):
        decode_unknown = next(case for case in PIPELINES if str(case) == "FluxPipeline").build()
        decode(decode_unknown, torch.zeros(1, 4, 16))


def test_both_calls_of_a_second_order_step_point_to_their_own_clean_sample(pipe):
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(3)
    sample, output = torch.randn(2, 1, 3)
    calls = scheduler.sigmas.tolist()
    for call, timestep in enumerate(scheduler.timesteps):
        clean, share = clean_sample(scheduler, output, sample, timestep)
        assert torch.allclose(clean, sample - calls[call] * output)
        assert share == pytest.approx(1 - calls[call + 1] / calls[call])
        scheduler.step(output, timestep, sample)


def test_a_step_that_was_replaced_before_is_put_back(pipe, prompts):
    pipe.scheduler.step = own = lambda *args, step=pipe.scheduler.step, **kwargs: step(*args, **kwargs)
    with observed_steps(pipe.scheduler, lambda *_: None):
        assert pipe.scheduler.step is not own
    assert pipe.scheduler.step is own
