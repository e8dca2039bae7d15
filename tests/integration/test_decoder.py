"""The diffusion decoder of LTX-2.5, against the masks that diffusers makes for it."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import diffattn
from diffattn.integration.decoder import NeighborhoodAttnProcessor

ltx = pytest.importorskip("diffusers.models.autoencoders.ltx2_diffusion_decoder")
flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")
GRIDS = [((5, 9, 11), (4, 4, 6)), ((3, 7, 7), (3, 7, 7)), ((4, 8, 10), (1, 5, 3)), ((3, 12, 16), (3, 5, 5))]
TINY = {
    "latent_channels": 8,
    "patch_size": 2,
    "decoder_head_dim": 16,
    "decoder_stage_channels": (32, 16, 16, 16, 16),
    "decoder_stage_depths": (1, 1, 1, 1, 2),
    "decoder_stage_kernels": ((3, 3, 3), (3, 3, 3), (3, 5, 5), (3, 5, 5)),
    "decoder_upsample_strides": ((1, 2, 2), (1, 1, 1), (1, 1, 1), (2, 1, 1)),
    "decoder_upsample_channel_reductions": (2, 1, 1, 1),
    "decoder_stage5_kernel": (3, 5, 5),
    "decoder_t_emb_dim": 8,
    "temporal_compression_ratio": 2,
    "spatial_compression_ratio": 4,
}


def masked(query, key, value, attn_mask=None, scale=None, **_):
    """Dense attention with the mask of tokens that a block mask was made from; FlexAttention is slow uncompiled."""
    tokens = query.shape[1]
    mask = flex_attention.create_mask(attn_mask.mask_mod, None, None, tokens, tokens, device="cpu")
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale).transpose(1, 2)


@pytest.fixture
def dense(monkeypatch):
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.FLEX, masked)


def attention(kernel):
    torch.manual_seed(0)
    return ltx.LTX2VideoVaeNeighborhoodAttention(32, kernel, head_dim=16).eval()


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("sizes, kernel", GRIDS)
@torch.no_grad()
def test_every_token_sees_the_window_that_diffusers_gives_it(sizes, kernel, impl, dense):
    module, states = attention(kernel), torch.randn(2, *sizes, 32)
    wanted = module(states)
    diffattn.enable_decoder(module, impl=impl)
    torch.testing.assert_close(module(states), wanted, rtol=0, atol=1e-5)
    assert module.build_block_mask(states) is None


@torch.no_grad()
def test_the_whole_decoder_and_back(dense):
    torch.manual_seed(0)
    model = diffattn_free = ltx.LTX2VideoDiffusionDecoderModel(**TINY).eval()
    latents = torch.randn(1, 8, 3, 5, 6)

    def decode():
        return model.decode(latents, generator=torch.Generator().manual_seed(1), return_dict=False)[0]

    before = dict(model.attn_processors)
    wanted = decode()
    diffattn.enable_decoder(model)
    assert all(isinstance(processor, NeighborhoodAttnProcessor) for processor in model.attn_processors.values())
    torch.testing.assert_close(decode(), wanted, rtol=0, atol=1e-5)
    diffattn.disable_decoder(diffattn_free)
    assert all(model.attn_processors[name] is processor for name, processor in before.items())
    assert torch.equal(decode(), wanted)


def test_a_window_that_an_axis_does_not_hold_is_refused_as_upstream_refuses_it():
    module = attention((3, 5, 5))
    diffattn.enable_decoder(module)
    with pytest.raises(ValueError, match=r"at least its kernel size.*\(2, 8, 8\)"):
        module(torch.randn(1, 2, 8, 8, 32))


def test_what_has_no_decoder_is_named():
    with pytest.raises(TypeError, match="Linear has no diffusion decoder"):
        diffattn.enable_decoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="impl must be one of"):
        diffattn.enable_decoder(attention((1, 1, 1)), impl="flash")
