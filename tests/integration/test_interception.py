"""Who else takes attention or processors in hand is heard: such calls are dense and counted, or said."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import LayerSkipConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from models.builders import case
from models.own_block import OwnBlockConfig
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn import RadialConfig, Schedule
from diffattn.integration.processors import SparseProcessorMixin

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
FULL = RadialConfig(density=1.0)


def skip(model):
    config = LayerSkipConfig(
        indices=[0], fqn="transformer_blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False
    )
    _apply_layer_skip_hook(model, config, name="skip")


def test_perturbed_attention_of_diffusers_acts_beside_sparse_attention():
    """`LayerSkipConfig(skip_attention_scores=True)` replaces torch's attention function while a layer runs."""
    at = case("QwenImage")
    plain, enabled = at.build(), at.build()
    diffattn.enable(enabled, FULL, schedule=ALWAYS, impl="torch")
    base = at.run(enabled)
    for model in (plain, enabled):
        skip(model)
    got, wanted = at.run(enabled), at.run(plain)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert (wanted - base).abs().max() > 0.01
    first, *others = diffattn.summary(enabled).models[0].layers
    assert dict(first.dense_calls) == {"AttentionScoreSkipFunctionMode intercepts attention": 1}
    assert all(not layer.dense_calls for layer in others)
    HookRegistry.check_if_exists_or_initialize(enabled).remove_hook("skip", recurse=True)
    torch.testing.assert_close(at.run(enabled), base, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["Wan", "SD3", "Cosmos"])
def test_any_function_mode_that_takes_attention_is_heard(name):
    """Whatever way a processor reaches attention, a mode outside of it sees the dense call it expects."""

    class Values(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.nn.functional.scaled_dot_product_attention:
                self.calls += 1
            return func(*args, **(kwargs or {}))

    at = case(name)
    model = at.build()
    with Values() as dense:
        wanted = at.run(model)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    with Values() as seen:
        assert torch.equal(at.run(model), wanted)
    assert seen.calls == dense.calls > 0
    with torch.device("cpu"):  # a default device is a mode too, and takes nothing
        assert not torch.equal(at.run(model), wanted)


def load_ip_adapter(transformer):
    """What `pipe.load_ip_adapter` does to a tiny FLUX, with weights made up."""
    hidden, text = transformer.inner_dim, transformer.config.joint_attention_dim
    weights = {}
    for block in range(len(transformer.transformer_blocks)):
        for part in ("k", "v"):
            weights[f"{block}.to_{part}_ip.weight"] = torch.randn(hidden, text)
            weights[f"{block}.to_{part}_ip.bias"] = torch.randn(hidden)
    image = {"proj.weight": torch.randn(4 * text, 8), "proj.bias": torch.randn(4 * text)}
    image |= {"norm.weight": torch.ones(text), "norm.bias": torch.zeros(text)}
    transformer._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": weights}])


def test_ip_adapters_of_flux_come_and_go_under_sparse_attention(caplog):
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "FluxPipeline")
    pipe = at.build()
    plain = at.run(pipe)
    diffattn.enable(pipe, OwnBlockConfig(), schedule=ALWAYS)
    load_ip_adapter(pipe.transformer)
    single = pipe.transformer.single_transformer_blocks[0].attn.processor
    assert type(single) is FluxAttnProcessor
    diffattn.enable(pipe, OwnBlockConfig(), schedule=ALWAYS)  # in front of the processors with an adapter
    sparse = {type(processor).__name__ for processor in pipe.transformer.attn_processors.values()}
    assert sparse == {"SparseFluxIPAdapterAttnProcessor", "SparseFluxAttnProcessor"}
    pipe.unload_ip_adapter()
    torch.testing.assert_close(at.run(pipe), plain, rtol=0, atol=0)
    diffattn.disable(pipe)
    torch.testing.assert_close(at.run(pipe), plain, rtol=0, atol=0)


def test_unloading_where_sd3_has_no_ip_adapter_leaves_the_plain_model():
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "StableDiffusion3Pipeline")
    pipe = at.build()
    plain = at.run(pipe)
    diffattn.enable(pipe, OwnBlockConfig(), schedule=ALWAYS)
    pipe.unload_ip_adapter()
    assert torch.equal(at.run(pipe), plain)
    diffattn.disable(pipe)
    assert torch.equal(at.run(pipe), plain)


@pytest.mark.parametrize("name", ["Flux", "SD3", "Wan", "HunyuanVideo15"])
def test_a_processor_that_diffusers_builds_anew_is_the_models_plain_one(name):
    """`load_ip_adapter` and its counterpart rebuild by `processor.__class__()` all they do not replace."""
    at = case(name)
    model = at.build()
    plain = at.run(model)
    classes = {key: type(processor) for key, processor in model.attn_processors.items()}
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert not torch.equal(at.run(model), plain)
    rebuilt = {key: _rebuilt(processor) for key, processor in model.attn_processors.items()}
    assert {key: type(processor) for key, processor in rebuilt.items()} == classes
    for module in model.modules():
        if isinstance(getattr(module, "processor", None), SparseProcessorMixin):
            module.processor = module.processor.__class__()
    assert torch.equal(at.run(model), plain)
    diffattn.disable(model)
    assert torch.equal(at.run(model), plain)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert not torch.equal(at.run(model), plain)


def _rebuilt(processor):
    try:
        return processor.__class__()
    except TypeError:  # some plain classes want arguments
        return copy.copy(processor)


@pytest.mark.parametrize("announced", [False, True])
def test_a_context_is_heard_whoever_registered_first(announced):
    """diffusers keeps a list of the hooks below a model from its first `cache_context` on."""
    at = case("Wan")
    model = at.build()
    if announced:
        with model.cache_context("cond"):
            at.run(model)
    diffattn.enable(model, OwnBlockConfig(), schedule=Schedule(dense_start=1, dense_layers=0))
    for step in range(2):
        with model.cache_context("cond", step_index=step, num_inference_steps=2):
            at.run(model)
    assert [dict(layer.dense_calls) for layer in diffattn.summary(model).models[0].layers] == [{"dense step": 1}] * 2
    assert [layer.sparse_calls for layer in diffattn.summary(model).models[0].layers] == [1, 1]
