"""Patterns that models bring along: run as they are, or replaced by a method, in the order that they put tokens in."""

import re

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import diffattn
from diffattn import RadialConfig, Schedule
from diffattn.analysis.capture import capture
from diffattn.integration.block_masks import INSIDE, block_lists
from diffattn.integration.native import NO_PATTERN

from .builders import case
from .native_builders import GRID, NATIVE, ExplicitMask, tile_by_tile
from .own_block import OwnBlockConfig
from .test_classes import ALWAYS, close, layers, processors

flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")


@pytest.fixture(scope="module", params=NATIVE, ids=str)
def built(request):
    model = request.param.build()
    for block in model.visual_transformer_blocks:  # without it, Kandinsky 5 fails on its own mask
        block.self_attention.set_attention_backend("flex") if "5" in str(request.param) else None
    return request.param, model


@pytest.fixture
def attention(monkeypatch):
    """Puts the test's own attention in place of FlexAttention, which ignores block lists unless it is compiled."""

    def use(kind):
        explicit = ExplicitMask(kind)
        monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.FLEX, explicit)
        return explicit

    return use


def test_native_is_what_the_model_was_trained_with(built, attention):
    case, model = built
    attention("dense")
    dense = case.run(model)
    released = attention("released")
    wanted = case.run(model)
    assert (wanted - dense).abs().max() > 1e-4 and 0.2 < released.shares[0] < 0.8
    diffattn.enable(model, "native", impl="torch")
    attention("dense")  # nothing falls back to it
    close(case.run(model), wanted)
    assert all((layer.sparse_calls, layer.dense_calls) == (1, {}) for layer in layers(model))
    assert [layer.density for layer in layers(model)] == pytest.approx(released.shares)
    assert "native" in str(diffattn.summary(model))
    diffattn.disable(model)
    assert torch.equal(case.run(model), dense)


def test_native_in_a_compiled_graph():
    at = NATIVE[-1]
    model = at.build()
    diffattn.enable(model, "native", impl="torch")
    eager = at.run(model)
    torch._dynamo.reset()
    model.visual_transformer_blocks[0].self_attention.compile(backend="eager", fullgraph=True)
    close(at.run(model), eager, atol=1e-6)
    assert [layer.sparse_calls for layer in layers(model)] == [2, 2]
    torch._dynamo.reset()


@pytest.mark.parametrize("config, kind", [(RadialConfig(density=1.0), "dense"), (OwnBlockConfig(), "own block")])
def test_a_method_replaces_the_pattern_on_the_grid(built, attention, config, kind):
    case, model = built
    attention(kind)
    wanted = case.run(model)
    diffattn.enable(model, config, schedule=ALWAYS)
    close(case.run(model), wanted)
    assert all((layer.sparse_calls, layer.dense_calls) == (1, {}) for layer in layers(model))
    diffattn.disable(model)


def test_only_self_attention_is_touched_and_dense_layers_run_the_models_own_backend(built, attention):
    case, model = built
    explicit = attention("released")
    wanted, before = case.run(model), processors(model)
    diffattn.enable(model, "native", schedule=Schedule(dense_start=0, dense_layers=1.0))
    after = processors(model)
    changed = {name for name in before if after[name] is not before[name]}
    assert changed == {name for name in before if re.fullmatch(case.attention, name)}
    assert torch.equal(case.run(model), wanted) and len(explicit.shares) == 4
    assert all(layer.dense_calls == {"dense layer": 1} for layer in layers(model))
    diffattn.disable(model)
    assert all(processors(model)[name] is before[name] for name in before)


def test_calls_that_bring_no_pattern_are_dense():
    at = case("Wan")
    model = at.build()
    dense = at.run(model)
    diffattn.enable(model, "native")
    assert torch.equal(at.run(model), dense)
    assert all(layer.dense_calls == {NO_PATTERN: 1} for layer in layers(model))


def test_captured_tokens_are_in_the_order_of_the_grid():
    at = NATIVE[0]
    model = at.build()
    order, keys = tile_by_tile(), []
    for block in model.visual_transformer_blocks:
        block.self_attention.set_attention_backend("flex")
    model.visual_transformer_blocks[0].self_attention.key_norm.register_forward_hook(
        lambda module, inputs, output: keys.append(output)
    )
    changes = {"visual_rope_pos": [torch.zeros(size, dtype=torch.int64) for size in GRID]}  # no rotation
    with capture(model) as calls:
        at.run(model, **changes)
    wanted = torch.empty_like(keys[0])
    wanted[:, order] = keys[0]
    close(calls[0].key.float(), wanted.bfloat16().float(), atol=0)


def test_what_a_block_mask_says():
    def causal(batch, head, query, key):
        return query >= key

    mask = flex_attention.create_block_mask(causal, None, None, 256, 256, device="cpu")
    assert block_lists(mask, 256) == INSIDE
    whole = flex_attention.create_block_mask(
        lambda b, h, q, k: q // 128 >= k // 128, None, None, 384, 384, device="cpu"
    )
    plan = block_lists(whole, 384).plan(384)
    block = torch.arange(384) // 128
    assert torch.equal(plan.to_dense_mask()[0, 0], block[:, None] >= block)
    assert "384 queries and 384 keys for 200 tokens" in block_lists(whole, 200)
    counts, indices = torch.tensor([[[1, 0]]]), torch.tensor([[[[1, 0], [0, 1]]]])
    more, others = torch.tensor([[[1, 1]]]), torch.tensor([[[[0, 1], [1, 0]]]])
    both = flex_attention.BlockMask.from_kv_blocks(counts, indices, more, others, BLOCK_SIZE=16)
    wanted = torch.tensor([[True, True], [False, True]]).repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert torch.equal(block_lists(both, 32).plan(32).to_dense_mask()[0, 0], wanted)
