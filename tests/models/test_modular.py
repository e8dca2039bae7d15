"""Modular pipelines of diffusers are enabled like any other."""

import pytest
import torch
from diffattn.pipelines.wan_modular import WanSparseBlocks
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks

import diffattn


def build(blocks):
    blocks.sub_blocks.pop("text_encoder")  # diffusers' needs ftfy, and embeddings are given here
    pipe = blocks.init_pipeline(diffattn.tiny_wan())
    pipe.load_components(dtype=torch.float32)
    return pipe


@pytest.fixture
def pipe():
    return build(WanBlocks())


def run(pipe, **more):
    embeds = torch.randn(2, 1, 12, pipe.transformer.config.text_dim, generator=torch.Generator().manual_seed(1))
    return pipe(
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output="latents",
        **more,
    )


def test_a_modular_wan_pipeline_follows_the_schedule_and_returns(pipe):
    dense = run(pipe)
    schedule = diffattn.Schedule(dense_start=1, dense_layers=1)
    diffattn.enable(pipe, diffattn.NeighborhoodConfig(density=0.4), schedule=schedule, impl="torch")
    sparse = run(pipe)
    first, *others = diffattn.summary(pipe).models[0].layers
    assert (first.sparse_calls, first.dense_calls) == (0, {"dense step": 2, "dense layer": 2})
    assert all((layer.sparse_calls, layer.dense_calls) == (2, {"dense step": 2}) for layer in others)
    assert sparse.isfinite().all() and not torch.equal(sparse, dense)
    diffattn.disable(pipe)
    assert torch.equal(run(pipe), dense)


def test_sparse_blocks_equal_enable_and_leave_nothing_behind(pipe):
    config, schedule = diffattn.NeighborhoodConfig(density=0.4), diffattn.Schedule(dense_start=1, dense_layers=1)
    dense = run(pipe)
    diffattn.enable(pipe, config, schedule=schedule)
    wanted = run(pipe)
    sparse = build(WanSparseBlocks())
    processors = dict(sparse.transformer.attn_processors)
    assert torch.equal(run(sparse, diffattn_config=config, diffattn_schedule=schedule), wanted)
    assert sparse.transformer.attn_processors == processors and not torch.equal(wanted, dense)
    with pytest.raises(ValueError, match="unknown method"):
        run(sparse, diffattn_config="nothing")
    assert sparse.transformer.attn_processors == processors


def test_sparse_blocks_take_the_default_method():
    assert not torch.equal(run(build(WanSparseBlocks())), run(build(WanBlocks())))
