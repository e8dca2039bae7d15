"""A LoRA trained through sparse attention, on the data or along its own sampling, and those that are shipped."""

import copy
import json

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

import diffattn
from examples.tiny_wan import train
from examples.tiny_wan.batches import GridSpec, batches
from examples.tiny_wan.forward import TrainingForward
from examples.tiny_wan.text import encode, encode_words, token_ids

pytest.importorskip("peft")

STEPS = 4
SPEC = GridSpec.parse("3x8x8:1:1")
EVERY_CALL = diffattn.Schedule(dense_start=0, dense_layers=0)
SPARSE = ["--method", "radial", "--options", '{"density": 0.4}']


@pytest.fixture(scope="module")
def folder(untrained):
    return untrained(0.3)


@pytest.fixture
def pipe(folder):
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(folder, out, *options):
    sizes = "--lora --grid 3x8x8:1:2 --steps 2 --device cpu".split()
    train.main(["--resume", str(folder), "--out", str(out), *sizes, *options])


def velocity(pipe):
    latents = torch.randn(1, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pipe.transformer(latents, torch.tensor([500.0]), torch.zeros(1, 512, 64), return_dict=False)[0]


def test_words_are_encoded_as_the_pipeline_does(pipe):
    captions = ["a red circle moves left over a blue background", ""]
    ours = encode_words(pipe.text_encoder, token_ids(captions))
    theirs = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], atol=1e-5, rtol=0)
    assert not theirs[:, ours.shape[1] :].any()


def test_the_loss_runs_through_the_sparse_operator(pipe):
    batch, forward = next(batches([SPEC], 0)), TrainingForward(pipe.transformer)
    gradients = {}
    for density in (None, 1.0, 0.4):
        diffattn.disable(pipe)
        if density:
            diffattn.enable(pipe.transformer, diffattn.config("radial", density=density), schedule=EVERY_CALL)
        torch.manual_seed(0)
        loss = train.velocity_loss(forward, pipe.text_encoder, batch)
        gradients[density] = torch.autograd.grad(loss, list(pipe.transformer.parameters()))
    assert 0 < diffattn.summary(pipe).density < 0.7  # as sparse as radial gets on so small a grid
    for dense, full in zip(gradients[None], gradients[1.0], strict=True):
        torch.testing.assert_close(full, dense, atol=1e-5, rtol=1e-3)
    to_q = [name for name, _ in pipe.transformer.named_parameters()].index("blocks.0.attn1.to_q.weight")
    gap = (gradients[0.4][to_q] - gradients[None][to_q]).norm() / gradients[None][to_q].norm()
    assert gap > 0.05


@pytest.mark.parametrize("method, options", [("radial", {}), ("vmoba", {"partitions": ["3d"], "box": [1, 4, 4]})])
def test_a_lora_changes_the_model_and_only_with_it(folder, tmp_path, method, options):
    run(folder, tmp_path / "lora", "--method", method, "--options", json.dumps({"density": 0.4, **options}))
    assert options.items() <= json.loads((tmp_path / "lora" / "diffattn_config.json").read_text()).items()
    pipe = WanPipeline.from_pretrained(folder)
    before = velocity(pipe)
    pipe.load_lora_weights(tmp_path / "lora")
    assert not torch.equal(velocity(pipe), before)
    pipe.unload_lora_weights()
    assert torch.equal(velocity(pipe), before)
    diffattn.enable(pipe, tmp_path / "lora")
    velocity(pipe)
    assert method in str(diffattn.summary(pipe)) and diffattn.summary(pipe).density < 0.7


def test_a_lora_goes_on_from_another(folder, tmp_path):
    run(folder, tmp_path / "one")
    run(folder, tmp_path / "two", "--lora-from", str(tmp_path / "one"), "--lr", "0")
    one, two = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any(weights.any() for name, weights in one.items() if "lora_B" in name)


@pytest.mark.parametrize("options, why", [
    (["--options", '{"density": 0.2}'], "give --method"),
    (["--rollout", "4"], "give --method"),
    (["--rollout", "1", *SPARSE], "2 steps or more"),
    (["--rollout", "4", "--grid", "3x4x4:1:1", *SPARSE], "one --grid"),
])  # fmt: skip
def test_what_would_be_ignored_is_refused(folder, tmp_path, capsys, options, why):
    with pytest.raises(SystemExit):
        run(folder, tmp_path, *options)
    assert why in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.parse_args(["--out", "x", "--grid", "3x4x4:1:1", "--lora-from", "y"])
    assert "give both" in capsys.readouterr().err


def sampled(pipe, noise, caption):
    """What the stock pipeline holds after each step."""
    states = []
    pipe(
        caption, latents=noise.clone(), height=64, width=64, num_frames=9, num_inference_steps=STEPS,
        guidance_scale=train.GUIDANCE, output_type="latent",
        callback_on_step_end=lambda _, step, at, kept: states.append(kept["latents"]) or {},
    )  # fmt: skip
    return states


def asked_of(forward, seen):
    """The forward pass, which notes the states and noise levels that it is asked at."""

    def asked(latents, sigma, text):
        seen.append((latents[:1].detach(), sigma[0].item()))
        return forward(latents, sigma, text)

    return asked


def rollout(pipe, student, teacher, first=0):
    pipe.scheduler.set_timesteps(STEPS)
    stream, levels = batches([SPEC], 0, empty=0.0), pipe.scheduler.sigmas[:-1]
    return train.rollout(student, teacher, pipe.text_encoder, stream, levels, first=first)


def test_a_clip_goes_where_the_sparse_pipeline_samples(pipe):
    teacher, student = TrainingForward(copy.deepcopy(pipe.transformer)), TrainingForward(pipe.transformer)
    diffattn.enable(pipe.transformer, diffattn.config("radial", density=0.4), schedule=EVERY_CALL)
    seen = []
    losses = rollout(pipe, asked_of(student, seen), teacher)
    first = next(losses).item()
    for _ in range(STEPS - 2):
        next(losses)
    caption = pipe.tokenizer.decode(next(batches([SPEC], 0, empty=0.0)).words[0], skip_special_tokens=True)
    noise, levels = seen[0][0], pipe.scheduler.sigmas
    states = sampled(pipe, noise, caption)
    diffattn.disable(pipe.transformer)
    dense = sampled(pipe, noise, caption)
    for (ours, _), sparse, exact in zip(seen[1:], states, dense, strict=False):
        torch.testing.assert_close(ours, sparse, atol=1e-4, rtol=1e-4)
        assert (sparse - exact).abs().max() > 1e-2
    change = (dense[0] - states[0]) / (levels[1] - levels[0])
    assert first == pytest.approx(change.square().mean().item(), rel=1e-2) and first > 1e-4


def test_an_equal_teacher_has_nothing_to_teach(pipe):
    teacher, student = TrainingForward(copy.deepcopy(pipe.transformer)), TrainingForward(pipe.transformer)
    diffattn.enable(pipe.transformer, diffattn.config("radial", density=1.0), schedule=EVERY_CALL)
    assert next(rollout(pipe, student, teacher)).item() < 1e-8


def test_a_clip_that_is_done_makes_room_for_one_of_noise(pipe):
    forward, seen = TrainingForward(pipe.transformer), []
    with torch.no_grad():
        for _ in zip(range(4), rollout(pipe, asked_of(forward, seen), forward, first=1)):
            pass
    levels = pipe.scheduler.sigmas.tolist()
    assert [level for _, level in seen[:4]] == pytest.approx([levels[1], levels[2], levels[0], levels[1]])
    assert seen[0][0].std() < seen[2][0].std() and (seen[1][0] != seen[3][0]).any()


def test_a_lora_is_trained_along_its_own_sampling(folder, tmp_path):
    run(folder, tmp_path / "lora", "--rollout", str(STEPS), *SPARSE)
    assert json.loads((tmp_path / "lora" / "diffattn_config.json").read_text())["schedule"]["dense_start"] == 0
    pipe = WanPipeline.from_pretrained(folder)
    pipe.load_lora_weights(tmp_path / "lora")
    moved = [weights.abs().max() > 0 for name, weights in pipe.transformer.named_parameters() if "lora_B" in name]
    assert moved and all(moved)


def test_the_shipped_lora_brings_sparse_attention_nearer_to_dense():
    pipe, lora = WanPipeline.from_pretrained(diffattn.tiny_wan()), f"{diffattn.tiny_wan()}/vmoba"
    batch = next(batches([GridSpec((9, 16, 16), 9, 1.0, 1)], 5, empty=0.0))
    noise = torch.randn(1, 6, 9, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = torch.lerp(batch.latents, noise, 0.8)
    words, mask = encode(pipe.text_encoder, torch.cat([batch.words, token_ids([""])]))
    words = torch.nn.functional.pad(words * mask[..., None], (0, 0, 0, 512 - words.shape[1]))

    def guided():
        with torch.no_grad():
            inputs = latents.repeat(2, 1, 1, 1, 1), torch.tensor([800.0, 800.0]), words
            given, without = pipe.transformer(*inputs, return_dict=False)[0]
        return without.lerp(given, 3.0)

    exact = guided()
    config = diffattn.AttentionConfig.from_pretrained(lora)
    diffattn.enable(pipe.transformer, config, schedule=EVERY_CALL)
    before = (guided() - exact).norm()
    pipe.load_lora_weights(lora)
    assert (guided() - exact).norm() < 0.8 * before
    assert diffattn.summary(pipe.transformer).density < 0.3
    diffattn.disable(pipe.transformer)
    diffattn.enable(pipe, lora)
    assert "vmoba" in str(diffattn.summary(pipe))


def test_the_shipped_lora_for_twice_the_length_loads_with_its_method():
    pipe, lora = WanPipeline.from_pretrained(diffattn.tiny_wan()), f"{diffattn.tiny_wan()}/radial_65"
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 128, "width": 128, "num_frames": 65, "num_inference_steps": 2, "output_type": "latent"}

    def latents():
        return pipe("a red circle", guidance_scale=1.0, generator=torch.Generator().manual_seed(0), **options).frames

    diffattn.enable(pipe, lora)
    before = latents()
    pipe.load_lora_weights(lora)
    assert (latents() - before).norm() > 0.01 * before.norm()
    assert "radial" in str(diffattn.summary(pipe)) and diffattn.summary(pipe).density < 0.31
