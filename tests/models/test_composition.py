"""diffattn beside everything else that people do to a transformer."""

import copy
import json
import pickle
from types import SimpleNamespace

import accelerate
import diffusers
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanTransformer3DModel,
)
from diffusers.hooks._helpers import AttentionProcessorRegistry
from diffusers.models import attention_dispatch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import LoraConfig

import diffattn
from diffattn import RadialConfig, Schedule
from diffattn.integration.hook import find_hook
from diffattn.models import adapter_for

from .builders import case
from .masking import MaskedAttention
from .own_block import OwnBlockConfig
from .pipeline_builders import PIPELINES

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
ONE_DENSE = Schedule(dense_start=0, dense_layers=1)
FULL = RadialConfig(density=1.0)


@pytest.fixture(params=["Wan", "HunyuanVideo", "Flux"])
def built(request):
    at = case(request.param)
    return at, at.build()


def close(got, wanted, atol=1e-5):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def sparse_run(at, model, schedule=ALWAYS):
    """By tiles: with `impl="auto"` the kernel takes one dense call with a mask for sequences as short as these."""
    diffattn.enable(model, OwnBlockConfig(), schedule=schedule, impl="torch")
    return at.run(model)


def masked_run(at, model):
    """The same, from torch's attention with an explicit mask and without diffattn."""
    with MaskedAttention(at):
        return at.run(model)


def assert_bfloat16_close(got, wanted, dense):
    """Rounding apart, and far less than what the mask changes."""
    difference, effect = ((out.float() - wanted.float()).abs() for out in (got, dense))
    assert difference.max() < 0.05 and difference.mean() < 0.005
    assert effect.mean() > 10 * difference.mean()


def sparse_calls(model):
    return [layer.sparse_calls for m in diffattn.summary(model).models for layer in m.layers]


def backends(model):
    return {p._attention_backend for p in model.attn_processors.values() if hasattr(p, "_attention_backend")}


@pytest.fixture
def default_backend():
    yield
    case("Wan").build().set_attention_backend("native")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_the_chosen_backend_runs_what_stays_dense(built, before, default_backend):
    at, model = built
    wanted = sparse_run(at, model, ONE_DENSE)
    diffattn.disable(model)
    if before:
        model.set_attention_backend("_native_math")
    diffattn.enable(model, OwnBlockConfig(), schedule=ONE_DENSE)
    if not before:
        model.set_attention_backend("_native_math")
    chosen = backends(model)
    assert chosen == {"_native_math"}
    close(at.run(model), wanted)
    assert sparse_calls(model)[1:] == [1] * (len(sparse_calls(model)) - 1)
    diffattn.disable(model)
    assert backends(model) == chosen


def test_a_backend_that_fails_is_reached_by_dense_layers_only(built):
    """Names no backend: whoever dispatches to it says so."""
    at, model = built
    diffattn.enable(model, OwnBlockConfig(), schedule=ONE_DENSE)
    processor = find_hook(model).processors[0][1]
    processor._attention_backend = "nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        at.run(model)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert at.run(model).isfinite().all()


@pytest.mark.parametrize("name", ["Wan", "Flux"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_fused_projections(name, before):
    at = case(name)
    model = at.build()
    wanted = sparse_run(at, model)
    if before:
        diffattn.disable(model)
        model.fuse_qkv_projections()
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    else:
        model.fuse_qkv_projections()
    close(at.run(model), wanted)
    assert min(sparse_calls(model)) == 1 + (not before)
    model.unfuse_qkv_projections()
    close(at.run(model), wanted)


def test_a_fuse_that_replaces_processors_is_named(caplog):
    at = case("CogVideoX")
    model = at.build()
    dense, wanted = at.run(model), sparse_run(at, model)
    model.fuse_qkv_projections()
    close(at.run(model), dense)
    at.run(model)
    (message,) = caplog.messages
    for part in (
        "2 of the 2",
        "CogVideoXTransformer3DModel",
        "transformer_blocks.0.attn1",
        "FusedCogVideoX",
        "enable",
    ):
        assert part in message
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    close(at.run(model), wanted)
    model.unfuse_qkv_projections()
    # the processors of the first enable are back, and know that they were disabled
    close(at.run(model), dense)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("name", ["Wan", "Flux"])
def test_lora_adapters(name):
    """Added, scaled, switched off, fused and deleted under sparse attention, which is put in again in between."""
    at = case(name)
    model = at.build()
    plain = sparse_run(at, model)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    added = at.run(model)
    model.set_adapters("default", 0.5)
    scaled = at.run(model)
    assert min((a - b).abs().max() for a, b in [(added, plain), (scaled, plain), (scaled, added)]) > 1e-4
    close(sparse_run(at, model), scaled, atol=0)
    model.disable_lora()
    close(at.run(model), plain)
    model.enable_lora()
    model.fuse_lora()
    close(at.run(model), scaled)
    model.unfuse_lora()
    model.delete_adapters("default")
    close(at.run(model), plain)
    assert min(sparse_calls(model)) == 4


@pytest.fixture(params=["stand-in", "xformers"])
def xformers(request, monkeypatch, default_backend):
    """Counts calls. On a CPU diffusers' own wiring runs, and torch stands in for the package at its end."""
    calls = []

    def stand_in(query, key, value, attn_bias, p, scale):
        calls.append(query.shape)
        parts = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*parts, attn_bias, p, scale=scale).transpose(1, 2)

    if request.param == "stand-in":
        monkeypatch.setattr(attention_dispatch, "xops", SimpleNamespace(memory_efficient_attention=stand_in))
        monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
        return torch.device("cpu"), calls
    if not torch.cuda.is_available():
        pytest.skip("xformers runs on a GPU")
    real = pytest.importorskip("xformers.ops").memory_efficient_attention
    monkeypatch.setattr(
        "xformers.ops.memory_efficient_attention", lambda query, *a: calls.append(query.shape) or real(query, *a)
    )
    return torch.device("cuda"), calls


def test_xformers_runs_dense_steps_dense_layers_and_cross_attention(xformers):
    device, calls = xformers
    at = case("Wan")
    model = at.build().to(device)
    torch.manual_seed(1)
    inputs = {name: value.to(device) for name, value in at.inputs().items()}
    diffattn.enable(model, OwnBlockConfig(), schedule=Schedule(dense_start=1, dense_layers=1))

    def run():
        outputs = []
        for step in range(2):
            with torch.no_grad(), model.cache_context("cond", step_index=step, num_inference_steps=2):
                outputs.append(model(**inputs).sample)
        return torch.stack(outputs)

    wanted = run()
    model.set_attention_backend("xformers")
    close(run(), wanted)
    # two layers: all of the first step; in the second cross-attention, and self-attention of the first layer
    assert len(calls) == 4 + 3
    assert sparse_calls(model) == [0, 2]


def test_quantised_linear_layers(built):
    """Weights of 8 bits."""
    quantization = pytest.importorskip("torchao.quantization")
    at, model = built
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    dense = at.run(model)
    diffattn.enable(model, FULL, schedule=ALWAYS)
    close(at.run(model), dense)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert not torch.equal(at.run(model), dense) and min(sparse_calls(model)) == 1
    diffattn.disable(model)
    assert torch.equal(at.run(model), dense)


def test_bfloat16(built):
    at, model = built
    model.to(torch.bfloat16)
    torch.manual_seed(1)
    inputs = {name: _to_bfloat16(name, value) for name, value in at.inputs().items()}
    dense = at.run(model, **inputs)
    with MaskedAttention(at):
        wanted = at.run(model, **inputs)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    sparse = at.run(model, **inputs)
    assert sparse.dtype == torch.bfloat16 and min(sparse_calls(model)) == 1
    assert_bfloat16_close(sparse, wanted, dense)


def _to_bfloat16(name, value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point() and not name.endswith("_ids")
    return value.to(torch.bfloat16) if floating else value


def test_autocast(built):
    at, model = built
    exact = masked_run(at, model)
    with torch.autocast("cpu", torch.bfloat16):
        dense, wanted, sparse = at.run(model), masked_run(at, model), sparse_run(at, model)
    assert_bfloat16_close(sparse, wanted, dense)
    assert (sparse.float() - exact).abs().mean() > 1e-4  # it did run in bfloat16
    assert min(sparse_calls(model)) == 1


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_layerwise_casting(built, before):
    """Of what is enabled before, and not again since; and of a model that is enabled under it."""
    at, model = built
    exact = masked_run(at, model)
    if before:
        sparse_run(at, model)
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    stored = {name for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16}
    assert {f"{name}.{to}.weight" for name in attention_names(model) for to in ("to_q", "to_v")} <= stored
    sparse = at.run(model) if before else sparse_run(at, model)
    assert min(sparse_calls(model)) == 1 + before
    diffattn.disable(model)
    wanted = masked_run(at, model)
    close(sparse, wanted)
    assert (wanted - exact).abs().max() > 1e-3  # the weights were rounded
    assert {name for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16} == stored


def attention_names(model):
    return adapter_for(model).attention(model)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_group_offload(built, before, tmp_path):
    """To files: what is not brought back for a call is uninitialised memory."""
    at, model = built
    plain, wanted = at.run(model), sparse_run(at, model)
    if not before:
        diffattn.disable(model)
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    if not before:
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    for weight in model.parameters():
        weight.data.fill_(torch.nan)  # as a reuse of the memory might
    close(at.run(model), wanted)
    diffattn.disable(model)
    close(at.run(model), plain)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_sequential_offload(built, before):
    """Between calls the weights are nowhere but in accelerate's keeping."""
    at, model = built
    plain, wanted = at.run(model), sparse_run(at, model)
    if not before:
        diffattn.disable(model)
    accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
    if not before:
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    for expected in (wanted, wanted, plain):
        assert {weight.device.type for weight in model.parameters()} == {"meta"}
        close(at.run(model), expected)
        if expected is wanted and sparse_calls(model)[0] == 2 + before:
            diffattn.disable(model)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_model_offload(built, before):
    """accelerate brings the weights for every call, and its hook outlives `disable`."""
    at, model = built
    plain, wanted = at.run(model), sparse_run(at, model)
    if not before:
        diffattn.disable(model)
    _, offload = accelerate.cpu_offload_with_hook(model, "cpu")
    bring, brought = offload.hook.pre_forward, []
    offload.hook.pre_forward = lambda module, *a, **k: brought.append(module) or bring(module, *a, **k)
    if not before:
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, impl="torch")
    close(at.run(model), wanted)
    diffattn.disable(model)
    close(at.run(model), plain)
    assert brought == [model] * 2
    offload.remove()
    close(at.run(model), plain)
    assert len(brought) == 2


def test_gradient_checkpointing(built):
    at, model = built
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    model.train()

    def gradients():
        torch.manual_seed(1)
        model.zero_grad()
        model(**at.inputs(), return_dict=False)[0].square().mean().backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    for wanted, got in zip(plain, gradients()):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert any(grad is not None and grad.any() for grad in plain)
    assert min(sparse_calls(model)) == 3  # forward, forward, and once more in backward


CACHES = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.0),
    "pyramid broadcast": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 999
    ),
    "taylor seer": lambda: TaylorSeerCacheConfig(cache_interval=1, disable_cache_before_step=1),
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_step_caches(built, cache, before):
    at, model = built
    wanted = sparse_run(at, model)
    if before:
        diffattn.disable(model)
    model.enable_cache(CACHES[cache]())
    if before:
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    with model.cache_context("cond"):
        close(at.run(model), wanted)
    assert min(sparse_calls(model)) >= 1
    model.disable_cache()
    close(at.run(model), wanted)
    diffattn.disable(model)
    assert find_hook(model) is None


@pytest.mark.parametrize(
    "name, cache, options",
    [
        ("Wan", "MagCacheConfig", {"calibrate": True, "num_inference_steps": 4}),
        ("NucleusMoEImage", "TextKVCacheConfig", {}),
        ("Cosmos3Omni", "SeaCacheConfig", {}),
    ],
)
def test_caches_of_newer_releases(name, cache, options):
    if not hasattr(diffusers, cache):
        pytest.skip(f"this release of diffusers has no {cache}")
    at = case(name)
    model = at.build()
    wanted = sparse_run(at, model)
    model.enable_cache(getattr(diffusers, cache)(**options))
    for step in range(2):  # the second finds what the first left
        with model.cache_context("cond", step_index=step, num_inference_steps=4):
            found = at.run(model)
        if step == 0 or cache == "TextKVCacheConfig":
            close(found, wanted)
    assert min(sparse_calls(model)) >= 1
    model.disable_cache()
    close(at.run(model), wanted)


def test_a_copy_runs_its_own_weights_and_counts_its_own_calls(built):
    at, model = built
    wanted = sparse_run(at, model)
    twin = copy.deepcopy(model)
    assert torch.equal(at.run(twin), wanted) and torch.equal(at.run(model), wanted)
    assert (sparse_calls(model)[0], sparse_calls(twin)[0]) == (2, 2)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(at.run(twin), wanted) and torch.equal(at.run(model), wanted)
    diffattn.disable(twin)
    assert find_hook(twin) is None and find_hook(model) is not None
    assert torch.equal(at.run(model), wanted) and sparse_calls(model)[0] == 4


def test_processors_pickle(built):
    at, model = built
    wanted = sparse_run(at, model)
    attention, processor = find_hook(model).processors[0]
    restored = pickle.loads(pickle.dumps(processor))
    assert type(restored) is type(processor) and restored.layer.name == processor.layer.name
    assert type(restored.original) is type(processor.original)
    restored.handler = processor.handler
    attention.set_processor(restored)
    assert torch.equal(at.run(model), wanted)
    assert restored.layer.sparse_calls == 2


def test_the_saved_model_is_a_plain_dense_one(tmp_path):
    at = case("Wan")
    model = at.build()
    dense, _ = at.run(model), sparse_run(at, model)
    model.save_pretrained(tmp_path)
    names = json.loads((tmp_path / "config.json").read_text())
    assert not any("diffattn" in name or "sparse" in name for name in names)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path)
    assert {type(p).__name__ for p in loaded.attn_processors.values()} == {"WanAttnProcessor"}
    assert torch.equal(at.run(loaded), dense)


def test_diffusers_knows_of_the_processors_what_it_knows_of_their_base():
    model = case("Flux").build()
    diffattn.enable(model)
    processor = model.transformer_blocks[0].attn.processor
    assert AttentionProcessorRegistry.get(type(processor)) is AttentionProcessorRegistry.get(FluxAttnProcessor)


def test_a_pipeline_made_from_another_shares_what_is_enabled():
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "FluxPipeline")
    pipe = at.build()
    diffattn.enable(pipe, OwnBlockConfig(), schedule=Schedule(dense_start=1, dense_layers=0))
    wanted = at.run(pipe)
    assert torch.equal(at.run(type(pipe).from_pipe(pipe)), wanted)
    assert {layer.sparse_calls for layer in diffattn.summary(pipe).models[0].layers} == {8}
