"""Modular pipelines of diffusers are enabled like any other."""

import pytest
import torch
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks

import diffattn


@pytest.fixture
def pipe():
    blocks = WanBlocks()
    blocks.sub_blocks.pop("text_encoder")  # diffusers' needs ftfy, and embeddings are given here
    pipe = blocks.init_pipeline(diffattn.tiny_wan())
    pipe.load_components(dtype=torch.float32)
    return pipe


def run(pipe):
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
