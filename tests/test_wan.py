import copy

import diffusers
import pytest
import torch
from PIL import Image
from wan import image_to_video, run, text_to_video, tiny_transformer

import diffattn
from diffattn import RadialConfig, Schedule, TokenGrid
from diffattn.integration.hook import find_hook

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
FULL = RadialConfig(density=1.0)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 16, 3, 18, 20),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 12, 16),
        "return_dict": False,
    }


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


def processors(model):
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


def calls(pipe):
    return [(layer.sparse_calls, dict(layer.dense_calls)) for m in diffattn.summary(pipe).models for layer in m.layers]


def test_disable_gives_back_the_same_objects_and_the_same_bits(inputs):
    model = tiny_transformer()
    before, dense, keys = processors(model), forward(model, inputs), model.state_dict().keys()
    diffattn.enable(model, "radial", schedule=ALWAYS)
    assert not torch.equal(forward(model, inputs), dense)
    assert model.state_dict().keys() == keys
    diffattn.disable(model)
    after = processors(model)
    assert all(after[name] is before[name] for name in before) and after.keys() == before.keys()
    assert torch.equal(forward(model, inputs), dense)
    assert find_hook(model) is None


def test_only_self_attention_is_touched(inputs):
    model = tiny_transformer()
    before = processors(model)
    diffattn.enable(model)
    changed = {name for name, processor in processors(model).items() if processor is not before[name]}
    assert changed == {f"blocks.{index}.attn1" for index in range(3)}
    assert all(isinstance(processors(model)[name], type(before[name])) for name in changed)


def test_full_density_is_dense_attention(inputs):
    model = tiny_transformer()
    dense = forward(model, inputs)
    diffattn.enable(model, FULL, schedule=ALWAYS)
    torch.testing.assert_close(forward(model, inputs), dense, rtol=0, atol=1e-5)


def test_a_plan_equals_the_same_mask_run_by_the_models_own_processor(inputs):
    model = tiny_transformer()
    mask = diffattn.make_plan("radial", TokenGrid(3, 9, 10)).to_dense_mask()
    assert not mask.all()
    originals = [block.attn1.processor for block in model.blocks]
    for block, original in zip(model.blocks, originals):
        block.attn1.processor = lambda attn, x, ctx, m, rope, original=original: original(attn, x, ctx, mask, rope)
    masked = forward(model, inputs)
    for block, original in zip(model.blocks, originals):
        block.attn1.processor = original
    diffattn.enable(model, "radial", schedule=ALWAYS)
    torch.testing.assert_close(forward(model, inputs), masked, rtol=0, atol=1e-5)


def test_a_second_enable_replaces_the_first(inputs):
    model = tiny_transformer()
    before, dense = processors(model), forward(model, inputs)
    diffattn.enable(model, "radial", schedule=ALWAYS)
    diffattn.enable(model, FULL, schedule=ALWAYS)
    torch.testing.assert_close(forward(model, inputs), dense, rtol=0, atol=1e-5)
    diffattn.disable(model)
    assert all(processors(model)[name] is before[name] for name in before)
    diffattn.disable(model)
    assert torch.equal(forward(model, inputs), dense)


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), 3, text_to_video(transformer=None)])
def test_what_cannot_be_served_is_named(thing):
    message = f"diffattn does not support {type(thing).__name__}.*WanTransformer3DModel"
    for call in (diffattn.enable, diffattn.disable, diffattn.summary):
        with pytest.raises(TypeError, match=message):
            call(thing)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"config": "radail"}, ValueError, "unknown method 'radail', known are:"),
        ({"config": 3}, TypeError, "config must be a method name, a folder or an AttentionConfig, got int"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
        ({"impl": "xformers"}, ValueError, r"diffattn\[xformers\].*set_attention_backend"),
        ({"grid": (3, 9)}, ValueError, r"grid must be \(frames, height, width\) in tokens, got \(3, 9\)"),
        ({"grid": (3, 0, 9)}, ValueError, "TokenGrid height must be an integer of at least 1, got 0"),
        ({"schedule": 0.2}, TypeError, "schedule must be a diffattn.Schedule, got float"),
    ],
)
def test_a_bad_call_changes_nothing(inputs, options, error, message):
    model = tiny_transformer()
    diffattn.enable(model, "radial", schedule=ALWAYS)
    before, sparse = processors(model), forward(model, inputs)
    with pytest.raises(error, match=message):
        diffattn.enable(model, **options)
    assert all(processors(model)[name] is before[name] for name in before)
    assert torch.equal(forward(model, inputs), sparse)


def test_apply_and_remove_take_transformers_only():
    with pytest.raises(TypeError, match="diffattn does not support WanPipeline"):
        diffattn.apply_sparse_attention(text_to_video(), "radial")
    model = tiny_transformer()
    before = processors(model)
    diffattn.apply_sparse_attention(model, "radial")
    assert find_hook(model) is not None
    diffattn.remove_sparse_attention(model)
    assert all(processors(model)[name] is before[name] for name in before)


def test_the_dense_backend_stays_the_users(inputs):
    model = tiny_transformer()
    diffattn.enable(model, "radial", schedule=Schedule(dense_start=0, dense_layers=3))
    try:
        model.set_attention_backend("_native_math")
        attention = model.blocks[0].attn1
        assert attention.processor._attention_backend == "_native_math"
        assert attention.processor.original._attention_backend == "_native_math"
        dense = forward(model, inputs)
        diffattn.disable(model)
        assert torch.equal(forward(model, inputs), dense)
    finally:
        model.set_attention_backend("native")
        model.reset_attention_backend()


def test_a_pipeline_run_follows_the_schedule_and_repeats():
    pipe = text_to_video()
    diffattn.enable(pipe, "radial", schedule=Schedule(dense_start=0.2, dense_end=1, dense_layers=1))
    first = run(pipe)
    # 5 steps, conditional and unconditional: step 0 and step 4 dense, layer 0 dense in the other three
    assert calls(pipe) == [(0, {"dense step": 4, "dense layer": 6}), (6, {"dense step": 4}), (6, {"dense step": 4})]
    assert torch.equal(run(pipe), first)
    summary = diffattn.summary(pipe)
    assert summary.density == diffattn.make_plan("radial", TokenGrid(3, 9, 10)).density
    assert summary.attention_computed == pytest.approx((24 * summary.density + 36) / 60)


def test_dense_steps_everywhere_are_the_dense_run():
    pipe = text_to_video()
    dense = run(pipe)
    diffattn.enable(pipe, "radial", schedule=Schedule(dense_start=1.0))
    assert torch.equal(run(pipe), dense)
    diffattn.enable(pipe, "radial", schedule=ALWAYS)
    assert not torch.equal(run(pipe), dense)
    diffattn.disable(pipe)
    assert torch.equal(run(pipe), dense)


def test_two_transformers_share_one_run():
    pipe = text_to_video(transformer_2=copy.deepcopy(tiny_transformer()), boundary_ratio=0.875)
    diffattn.enable(pipe, "radial", schedule=Schedule(dense_start=2, dense_layers=0))
    run(pipe, steps=6)
    sparse = {layer.sparse_calls for layer in diffattn.summary(pipe).models[0].layers}
    sparse_2 = {layer.sparse_calls for layer in diffattn.summary(pipe).models[1].layers}
    dense = [sum(layer.dense_calls.values()) for m in diffattn.summary(pipe).models for layer in m.layers]
    # the first two steps are dense wherever the boundary lies, the other four sparse
    assert sum(dense[::3]) == 4 and len(sparse) == len(sparse_2) == 1
    assert sum(sparse) + sum(sparse_2) == 8 and sum(sparse_2) > 0


def test_image_to_video_takes_its_step_from_the_scheduler():
    pipe = image_to_video()
    diffattn.enable(pipe, "radial", schedule=Schedule(dense_start=2, dense_layers=0))
    run(pipe, image=Image.new("RGB", (160, 144), "red"))
    assert calls(pipe) == [(6, {"dense step": 4})] * 3


def test_a_bare_transformer_says_that_it_does_not_know_the_step(inputs, monkeypatch):
    said = []
    monkeypatch.setattr(diffattn.integration.session.logger, "warning", said.append)
    model = tiny_transformer()
    diffattn.enable(model, "radial")
    forward(model, inputs), forward(model, inputs)
    assert len(said) == 1 and "the denoising step is not known" in said[0]


@pytest.mark.skipif(not hasattr(diffusers.hooks.hooks, "CacheContext"), reason="contexts are names before 0.41")
def test_a_bare_transformer_is_told_its_step(inputs):
    model = tiny_transformer()
    diffattn.enable(model, "radial")
    with model.cache_context("cond", step_index=0, num_inference_steps=10):
        forward(model, inputs)
    assert diffattn.summary(model).models[0].layers[1].dense_calls == {"dense step": 1}


def test_the_grid_follows_the_inputs(inputs):
    model = tiny_transformer()
    diffattn.enable(model, "radial", schedule=ALWAYS)
    forward(model, inputs)
    forward(model, {**inputs, "hidden_states": torch.randn(2, 16, 2, 26, 14)})
    assert diffattn.summary(model).to_dict()["grid"] == "2x13x7"


def test_the_summary_reads_well(inputs):
    model = tiny_transformer()
    assert str(diffattn.summary(model)) == "diffattn is not enabled"
    diffattn.enable(model, "radial", schedule=Schedule(dense_start=0, dense_layers=1))
    assert "not run yet" in str(diffattn.summary(model))
    forward(model, inputs)
    text = str(diffattn.summary(model))
    for part in (
        "radial",
        "3x9x10, 270 tokens",
        "blocks.0.attn1: 1 dense (dense layer)",
        "torch (the tensors",
        "2.13",
    ):
        assert part in text, part


def test_gradients_flow_through_sparse_attention(inputs):
    model = tiny_transformer()
    diffattn.enable(model, "radial", schedule=ALWAYS)
    model(**inputs)[0].square().mean().backward()
    grads = [block.attn1.to_q.weight.grad for block in model.blocks]
    assert all(grad is not None and grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)
