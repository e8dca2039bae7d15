"""Distilling along the sparse model's own sampling."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers import WanPipeline

import diffattn
from examples.tiny_wan import finetune
from examples.tiny_wan.batches import GridSpec, load_batches
from examples.tiny_wan.rollout import Rollouts

pytest.importorskip("peft")

STEPS, GUIDANCE = 4, 3.0


@pytest.fixture(scope="module")
def folder(untrained):
    return untrained(0.3)


@pytest.fixture
def pipe(folder):
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scenes(caption=None):
    for batch in load_batches([GridSpec((3, 8, 8), 3, 1.0, 1)], 0, 0):
        yield batch if caption is None else replace(batch, captions=[caption])


def rollouts(pipe, count):
    torch.manual_seed(0)
    return Rollouts(pipe, scenes(), count, STEPS, GUIDANCE)


def sampled(pipe, noise, caption):
    """What the stock pipeline holds after each step."""
    states = []
    pipe(
        caption, latents=noise.clone(), height=64, width=64, num_frames=9, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="latent",
        callback_on_step_end=lambda _, step, at, kept: states.append(kept["latents"]) or {},
    )  # fmt: skip
    return states


def test_a_clip_goes_where_the_sparse_pipeline_samples(pipe):
    teacher = copy.deepcopy(pipe.transformer)
    diffattn.enable(pipe.transformer, diffattn.config("radial", density=0.4), schedule=finetune.EVERY_CALL)
    caption = next(batch.captions[0] for batch in scenes() if batch.captions[0])
    rolled = rollouts(pipe, 1)
    noise, losses, seen = rolled.clips[0].latents, [], []
    for _ in range(STEPS - 2):
        losses.append(rolled.loss(pipe.transformer, teacher).item())
        seen.append(rolled.clips[0].latents)
    states = sampled(pipe, noise, caption)
    diffattn.disable(pipe.transformer)
    dense = sampled(pipe, noise, caption)
    for ours, sparse, exact in zip(seen, states, dense, strict=False):
        torch.testing.assert_close(ours, sparse, atol=1e-4, rtol=1e-4)
        assert (sparse - exact).abs().max() > 1e-2
    change = (dense[0] - states[0]) / (rolled.levels[1] - rolled.levels[0])
    assert losses[0] == pytest.approx(change.square().mean().item(), rel=1e-2) and losses[0] > 1e-4


def test_an_equal_teacher_has_nothing_to_teach(pipe):
    teacher = copy.deepcopy(pipe.transformer)
    diffattn.enable(pipe.transformer, diffattn.config("radial", density=1.0), schedule=finetune.EVERY_CALL)
    assert rollouts(pipe, 2).loss(pipe.transformer, teacher, focus=4.0).item() < 1e-8


def test_clips_are_at_steps_of_their_own_and_make_room_when_they_are_done(pipe):
    rolled, seen = rollouts(pipe, 3), []
    for _ in range(STEPS):
        seen.append([clip.step for clip in rolled.clips])
        before = [clip.latents for clip in rolled.clips]
        with torch.no_grad():
            rolled.loss(pipe.transformer, pipe.transformer)
    assert seen == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert all((clip.latents != old).any() for clip, old in zip(rolled.clips, before, strict=True))


def test_clips_without_a_caption_are_left_out(pipe):
    empty, rest = next(scenes("")), scenes("a red circle moves left over a blue background")
    torch.manual_seed(0)
    rolled = Rollouts(pipe, iter([empty, next(rest)]), 1, STEPS, GUIDANCE)
    assert rolled.clips[0].caption.count_nonzero() > 0
    with pytest.raises(StopIteration):
        Rollouts(pipe, iter([empty]), 1, STEPS, GUIDANCE)


def run(folder, out, *options):
    sizes = ["--frames", "9", "--side", "64", "--batch", "2", "--steps", "2", "--minutes", "5", "--workers", "0"]
    finetune.main([str(folder), "--out", str(out), *sizes, "--rank", "2", "--density", "0.4", *options])


def test_a_lora_is_trained_along_its_own_sampling(folder, tmp_path):
    run(folder, tmp_path, "--rollout", str(STEPS), "--device", "cpu")
    assert json.loads((tmp_path / "diffattn_config.json").read_text())["schedule"]["dense_start"] == 0
    pipe = WanPipeline.from_pretrained(folder)
    pipe.load_lora_weights(tmp_path)
    moved = [weights.abs().max() > 0 for name, weights in pipe.transformer.named_parameters() if "lora_B" in name]
    assert moved and all(moved)


@pytest.mark.parametrize("options, why", [
    (["--rollout", "1"], "2 steps or more, all of them sparse"),
    (["--rollout", "4", "--dense-start", "0.1"], "2 steps or more, all of them sparse"),
    (["--guidance", "5"], "give --rollout"),
])  # fmt: skip
def test_what_would_be_ignored_is_refused(folder, tmp_path, capsys, options, why):
    with pytest.raises(SystemExit):
        run(folder, tmp_path, *options)
    assert why in capsys.readouterr().err
