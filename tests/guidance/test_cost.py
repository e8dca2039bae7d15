"""Operations of a guided step, counted on the real configurations without their weights."""

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffattn.guidance import resolve_heads
from diffattn.guidance.engine import Perturber

SD3 = {
    "sample_size": 128,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
WAN = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
FLUX = {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}


def sd3():
    return {
        "hidden_states": torch.empty(1, 16, 128, 128),
        "encoder_hidden_states": torch.empty(1, 333, 4096),
        "pooled_projections": torch.empty(1, 2048),
        "timestep": torch.empty(1),
    }


def wan():
    return {
        "hidden_states": torch.empty(1, 16, 21, 60, 104),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
        "timestep": torch.empty(1),
    }


def flux():
    return {
        "hidden_states": torch.empty(1, 4096, 64),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
        "pooled_projections": torch.empty(1, 768),
        "timestep": torch.empty(1),
        "guidance": torch.empty(1),
        "img_ids": torch.empty(4096, 3),
        "txt_ids": torch.empty(512, 3),
    }


CASES = {
    "SD3 medium, 1024x1024": ("SD3Transformer2DModel", SD3, sd3, 4429, 1536),
    "Wan 1.3B, 81 frames of 480p": ("WanTransformer3DModel", WAN, wan, 32760, 1536),
    "FLUX.1, 1024x1024": ("FluxTransformer2DModel", FLUX, flux, 4608, 3072),
}


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_pass_costs_what_follows_the_first_perturbed_block(name):
    """`1 - (l0 + attention share) / L`; heads that are replaced take no part in the attention."""
    cls, config, inputs, tokens, width = CASES[name]
    with torch.device("meta"):
        model, inputs = getattr(diffusers, cls)(**config).eval(), inputs()
    perturber = Perturber(model)
    layers = len(perturber.model.blocks)

    def count():
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
        return counter.get_total_flops()

    def select(*chosen):
        return heads_of(resolve_heads(perturber.model, {head: 0.5 for head in chosen}))

    def heads_of(made):
        return made.select(perturber.model, made.guidance)

    first, last = 2 * layers // 3, layers - 1
    with perturber.recording(select((first, 0))) as prefix:
        whole = count()
    attention = 4 * tokens**2 * width
    for selection, computed in (
        (select((first, 0), (last, 1)), 1),
        (heads_of(resolve_heads(perturber.model, layers=[first, last])), 2),
    ):
        with perturber.perturbing(selection, prefix):
            cost = count() / whole
        assert cost == pytest.approx(1 - first / layers - computed * attention / whole, abs=0.03)
