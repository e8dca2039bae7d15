"""Fine-tuning through the sparse operator, and the training of the decoder, at a tiny scale."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors.torch import load_file

import diffattn
from examples.tiny_wan import decoder, finetune
from examples.tiny_wan.batches import Batch, GridSpec, load_batches
from examples.tiny_wan.latents import from_tokens, to_tokens
from examples.tiny_wan.text import encode_words, token_ids
from examples.tiny_wan.train import focused_error
from examples.tiny_wan.vae import encode_mean, wired_vae

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(untrained):
    return untrained(0.02)


def run(folder, out, *options):
    sizes = ["--frames", "9", "--side", "64", "--batch", "1", "--steps", "2", "--minutes", "5", "--workers", "0"]
    finetune.main([str(folder), "--out", str(out), *sizes, "--device", "cpu", *options])


def velocity(pipe):
    latents = torch.randn(1, 6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pipe.transformer(latents, torch.tensor([500.0]), torch.zeros(1, 512, 64), return_dict=False)[0]


def test_tokens_and_latents_are_the_same_numbers():
    latents = torch.randn(2, 6, 3, 4, 8)
    assert torch.equal(from_tokens(to_tokens(latents), (3, 2, 4)), latents)


def test_words_are_encoded_as_the_pipeline_does(folder):
    pipe, captions = WanPipeline.from_pretrained(folder), ["a red circle moves left over a blue background", ""]
    ours = encode_words(pipe.text_encoder, token_ids(captions))
    theirs = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "grid"), [(33, (9, 16, 16)), (65, (17, 16, 16))])
def test_grids_of_clips(frames, grid):
    assert finetune.grid_of(frames, 128) == grid
    with pytest.raises(ValueError, match="4n"):
        finetune.grid_of(frames + 1, 128)


def test_the_loss_runs_through_the_sparse_operator(folder):
    pipe = WanPipeline.from_pretrained(folder)
    batch: Batch = next(iter(load_batches([GridSpec((3, 8, 8), 3, 1.0, 1)], 0, 0)))
    gradients = {}
    for density in (None, 1.0, 0.4):
        diffattn.disable(pipe)
        trained = finetune.prepare(pipe, density and diffattn.config("radial", density=density), rank=0)
        torch.manual_seed(0)
        gradients[density] = torch.autograd.grad(finetune.velocity_loss(pipe, batch), trained)
    assert 0 < diffattn.summary(pipe).density < 0.7  # as sparse as radial gets on so small a grid
    for dense, full in zip(gradients[None], gradients[1.0], strict=True):
        torch.testing.assert_close(full, dense, atol=1e-5, rtol=1e-3)
    to_q = [name for name, _ in pipe.transformer.named_parameters()].index("blocks.0.attn1.to_q.weight")
    gap = (gradients[0.4][to_q] - gradients[None][to_q]).norm() / gradients[None][to_q].norm()
    assert gap > 0.05


def test_first_layers_stay_dense(folder):
    pipe = WanPipeline.from_pretrained(folder)
    finetune.prepare(pipe, diffattn.config("radial", density=0.4), rank=2, dense_layers=2)
    velocity(pipe)
    assert [layer.dense for layer in diffattn.summary(pipe).models[0].layers] == [True, True] + [False] * 4


def test_a_distilled_goal_is_the_dense_models_velocity(folder):
    pipe = WanPipeline.from_pretrained(folder)
    teacher = WanPipeline.from_pretrained(folder).transformer
    batch = next(iter(load_batches([GridSpec((3, 8, 8), 3, 1.0, 1)], 0, 0)))
    with torch.no_grad():
        finetune.prepare(pipe, diffattn.config("radial", density=1.0), rank=2)
        assert finetune.velocity_loss(pipe, batch).item() > 0.5
        assert finetune.velocity_loss(pipe, batch, teacher=teacher).item() < 1e-8
        diffattn.enable(pipe, diffattn.config("radial", density=0.4), schedule=finetune.EVERY_CALL)
        assert 1e-6 < finetune.velocity_loss(pipe, batch, teacher=teacher).item() < 0.5


def test_distillation_starts_with_little_to_teach(folder, tmp_path, monkeypatch):
    losses, loss = [], finetune.velocity_loss
    monkeypatch.setattr(finetune, "velocity_loss", lambda *inputs: losses.append(loss(*inputs)) or losses[-1])
    for options in (["--distil"], ["--distil", "--method", "dense"], ["--method", "dense"]):
        run(folder, tmp_path, "--density", "0.4", "--rank", "2", *options)
    sparse, dense, data = (losses[step].item() for step in (0, 2, 4))
    assert dense < 1e-8 < 1e-6 < sparse < 0.5 < data


def test_focus_weighs_the_tokens_around_objects():
    near = torch.zeros(1, 2, 4)
    near[0, 1, 3] = 1
    batch, target = SimpleNamespace(near=near), torch.zeros(1, 4, 2)
    for token, share in ((3, 4 / 7), (0, 1 / 7)):
        velocity = target.clone()
        velocity[:, token] = 1
        assert focused_error(velocity, target, batch, 3.0).item() == pytest.approx(share)
        assert focused_error(velocity, target, batch, 0.0).item() == pytest.approx(1 / 4)


@pytest.mark.parametrize("method, options", [("radial", {}), ("vmoba", {"partitions": ["3d"], "box": [1, 4, 4]})])
def test_a_lora_changes_the_model_and_only_with_it(folder, tmp_path, method, options):
    run(folder, tmp_path, "--method", method, "--density", "0.4", "--options", json.dumps(options), "--rank", "2")
    assert options.items() <= json.loads((tmp_path / "diffattn_config.json").read_text()).items()
    pipe = WanPipeline.from_pretrained(folder)
    before = velocity(pipe)
    pipe.load_lora_weights(tmp_path)
    assert not torch.equal(velocity(pipe), before)
    pipe.unload_lora_weights()
    assert torch.equal(velocity(pipe), before)
    diffattn.enable(pipe, tmp_path)
    velocity(pipe)
    assert method in str(diffattn.summary(pipe)) and diffattn.summary(pipe).density < 0.7


@pytest.mark.parametrize("method, options, why", [
    ("dense", '{"box": [1, 4, 4]}', "dense has no settings"),
    ("vmoba", "[1, 4, 4]", "takes a JSON object"),
    ("vmoba", '{"density": 0.2}', "which is --density"),
])  # fmt: skip
def test_settings_that_would_be_ignored_are_errors(folder, tmp_path, capsys, method, options, why):
    with pytest.raises(SystemExit):
        run(folder, tmp_path, "--method", method, "--options", options)
    assert why in capsys.readouterr().err


def test_a_lora_goes_on_from_another(folder, tmp_path):
    run(folder, tmp_path / "one", "--method", "dense", "--rank", "2")
    run(folder, tmp_path / "two", "--method", "dense", "--rank", "2", "--resume", str(tmp_path / "one"), "--lr", "0")
    one, two = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any(weights.any() for name, weights in one.items() if "lora_B" in name)
    with pytest.raises(SystemExit):
        run(folder, tmp_path / "three", "--rank", "0", "--resume", str(tmp_path / "one"))


def test_all_weights_give_a_pipeline_with_its_method_beside_it(folder, tmp_path):
    run(folder, tmp_path / "full", "--density", "0.4", "--rank", "0", "--dense-start", "0.1", "--dense-layers", "1")
    trained, start = (WanPipeline.from_pretrained(path) for path in (tmp_path / "full", folder))
    moved = [
        not torch.equal(a, b)
        for a, b in zip(trained.transformer.parameters(), start.transformer.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
    config = json.loads((tmp_path / "full" / "diffattn_config.json").read_text())
    assert config["method"] == "radial"
    assert config["schedule"] == {"dense_start": 0.1, "dense_end": 0, "dense_layers": 1}
    with pytest.raises(ValueError, match="dense_start must be a fraction"):
        run(folder, tmp_path / "none", "--dense-start", "1.5")


def test_the_decoder_trains_and_the_encoder_does_not(tmp_path):
    sizes = ["--minutes", "0.02", "--batch", "1", "--width", "8", "--clips", "1"]
    decoder.main(["--out", str(tmp_path), *sizes, "--device", "cpu"])
    trained, wired = AutoencoderKLWan.from_pretrained(tmp_path), wired_vae()
    video = torch.rand(1, 5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(encode_mean(trained, video), encode_mean(wired, video))
    assert trained.decoder.up_blocks[0].resnets[0].conv2.weight.abs().max() > 0


def test_the_shipped_lora_brings_sparse_attention_nearer_to_dense():
    pipe, lora = WanPipeline.from_pretrained(diffattn.tiny_wan()), f"{diffattn.tiny_wan()}/vmoba"
    batch = next(iter(load_batches([GridSpec((9, 16, 16), 9, 1.0, 1)], 5, 0)))
    noise = torch.randn(1, 6, 9, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = torch.lerp(from_tokens(batch.tokens, (9, 16, 16)), noise, 0.8)
    words = [encode_words(pipe.text_encoder, token_ids([caption])) for caption in (batch.captions[0], "")]

    def guided():
        with torch.no_grad():
            inputs = latents.repeat(2, 1, 1, 1, 1), torch.tensor([800.0, 800.0]), torch.cat(words)
            given, without = pipe.transformer(*inputs, return_dict=False)[0]
        return without.lerp(given, 3.0)

    exact = guided()
    config = diffattn.AttentionConfig.from_pretrained(lora)
    diffattn.enable(pipe.transformer, config, schedule=finetune.EVERY_CALL)
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
