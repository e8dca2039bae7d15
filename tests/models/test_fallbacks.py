"""What a plan cannot express is dense, is the model's own result, and is counted with its reason."""

from collections import Counter

import diffusers
import pytest
import torch

import diffattn
from diffattn import PyramidConfig, RadialConfig, Schedule, TokenGrid
from diffattn.integration.masks import as_key_mask
from diffattn.integration.placement import Placement, in_grid_order, place, reorder_plan
from diffattn.models.adapter import TOKENS_BEFORE_GRID

from .builders import case
from .cases import lengths, normal
from .masking import MaskedAttention
from .own_block import OwnBlockConfig, own_block_mask

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)


def dense_reasons(model):
    return sum((layer.dense_calls for m in diffattn.summary(model).models for layer in m.layers), Counter())


def packed_lumina():
    return case("Lumina2"), {"encoder_attention_mask": lengths((7, 4), 7, torch.bool)}, "texts of different lengths"


def float_chroma():
    keys = torch.cat((lengths((7, 4), 7), torch.ones(2, 48)), dim=1)
    return case("Chroma"), {"attention_mask": keys.float()}, "adds to the scores"


def coordinates_ltx():
    changes = {"num_frames": None, "height": None, "width": None, "video_coords": torch.rand(2, 3, 72)}
    return case("LTXVideo"), changes, "tokens placed by coordinates"


def mixed_z_image():
    images = [torch.randn(4, 1, 12, 16), torch.randn(4, 1, 8, 24)]
    return case("ZImage"), {"x": images}, "different sizes in one batch"


@pytest.mark.parametrize("make", [packed_lumina, float_chroma, coordinates_ltx, mixed_z_image])
def test_the_reason_is_counted_and_the_result_is_the_models_own(make):
    at, changes, reason = make()
    model = at.build()
    if at.model.startswith("ZImage"):
        dense = _lists(model, at, changes)
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
        assert all(torch.equal(a, b) for a, b in zip(_lists(model, at, changes), dense))
    else:
        dense = at.run(model, **changes)
        diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
        assert torch.equal(at.run(model, **changes), dense)
    (counted,) = dense_reasons(model)
    assert reason in counted
    assert counted in str(diffattn.summary(model))


def _lists(model, at, changes):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(**{**at.inputs(), "return_dict": False, **changes})[0]


def test_a_grid_that_is_given_stands_for_one_that_cannot_be_found():
    at, changes, _ = coordinates_ltx()
    model = at.build()
    with MaskedAttention(at):
        wanted = at.run(model, **changes)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, grid=at.grid)
    torch.testing.assert_close(at.run(model, **changes), wanted, rtol=0, atol=1e-5)
    assert dense_reasons(model) == {}
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS, grid=(3, 4, 5))
    at.run(model, **changes)
    assert dense_reasons(model) == {"12 tokens are not on the grid (3, 4, 5)": 2}


def omni_z_image():
    """Text, a reference image and the image to make, with features of the reference, in one sequence."""
    images = [[torch.randn(4, 1, 8, 8), torch.randn(4, 1, 12, 16)] for _ in range(2)]
    return {
        "x": images,
        "t": torch.tensor([0.5, 0.5]),
        "cap_feats": [[torch.randn(7, 16), torch.randn(5, 16)] for _ in range(2)],
        "siglip_feats": [[torch.randn(2, 2, 8), None] for _ in range(2)],
        "image_noise_mask": [[0, 1]] * 2,
        "return_dict": False,
    }


def test_several_images_in_one_sequence_stay_dense():
    at = case("ZImage")
    model = type(at)(**{**vars(at), "config": {**at.config, "siglip_feat_dim": 8}}).build()
    outputs = []
    for config in (None, OwnBlockConfig()):
        if config:
            diffattn.enable(model, config, schedule=ALWAYS)
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(model(**omni_z_image())[0])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert dense_reasons(model) == {"several images in one sequence (omni mode)": 2}


def test_cached_keys_of_reference_images_stay_dense():
    """As Flux2KleinKVPipeline does it: the first step stores them, the others read them."""
    at = case("Flux2-Edit")
    model = at.build()
    flux2 = diffusers.models.transformers.transformer_flux2
    for block in model.transformer_blocks:
        block.attn.set_processor(flux2.Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(flux2.Flux2KVParallelSelfAttnProcessor())

    def both_steps():
        torch.manual_seed(1)
        inputs = {**at.inputs(), "return_dict": False}
        cut = {name: inputs[name][..., 20:, :] for name in ("hidden_states", "img_ids")}
        with torch.no_grad():
            first, cache = model(**inputs, kv_cache_mode="extract", num_ref_tokens=20)
            return first, model(**{**inputs, **cut}, kv_cache_mode="cached", kv_cache=cache)[0]

    dense = both_steps()
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert all(torch.equal(a, b) for a, b in zip(both_steps(), dense))
    # the reference asks itself; text and image ask all, in the first step and from the cache
    cached = "keys and values of reference images come from a cache"
    assert dense_reasons(model) == {cached: 3, "query and key sequences differ": 6}


def test_a_block_causal_mask_stays_dense():
    at = case("SkyReelsV2")
    model = at.build()
    model.register_to_config(num_frame_per_block=3)
    dense = at.run(model)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert torch.equal(at.run(model), dense)
    assert dense_reasons(model) == {"a mask that is not a key mask": 2}


def test_one_sample_of_framepack_has_its_text_cut():
    at = case("HunyuanVideoFramepack")
    model = at.build()
    one = {name: value[:1] if name not in _INDICES else value for name, value in at.inputs().items()}
    one["encoder_attention_mask"] = lengths((4,), 7)
    dense = at.run(model, **one)
    diffattn.enable(model, RadialConfig(density=1.0), schedule=ALWAYS)
    torch.testing.assert_close(at.run(model, **one), dense, rtol=0, atol=1e-5)
    assert diffattn.summary(model).to_dict()["tokens"] == 72 + 56 + 2 + 4


_INDICES = {name for name in case("HunyuanVideoFramepack").inputs() if name.startswith("indices")}


def test_radial_attention_on_an_image_says_that_it_saves_nothing(monkeypatch):
    said = []
    monkeypatch.setattr(diffattn.integration.session.logger, "warning", said.append)
    at = case("Flux")
    model = at.build()
    diffattn.enable(model, "radial", schedule=ALWAYS)
    at.run(model), at.run(model)
    assert (
        len(said) == 1 and "radial attention keeps every key on 1x6x8" in said[0] and "more than one frame" in said[0]
    )


def test_methods_that_look_at_queries_get_them_in_the_order_of_the_grid():
    at, seen = case("Flux-Kontext"), []

    class Looking(OwnBlockConfig):
        dynamic = True

        def plan(self, grid, query=None, key=None, *, layer=0, **_):
            seen.append((grid, query.shape[1], key.shape[1]))
            return super().plan(grid, layer=layer)

    model = at.build()
    with MaskedAttention(at):
        wanted = at.run(model)
    diffattn.enable(model, Looking(), schedule=ALWAYS)
    torch.testing.assert_close(at.run(model), wanted, rtol=0, atol=1e-5)
    assert seen == [(TokenGrid(1, 6, 8, text=27), 75, 75)] * 3
    tokens = torch.arange(75).view(1, 75, 1, 1)
    query, key = in_grid_order(tokens, tokens, order=place((1, 6, 8), 7, 75).order())
    assert query.flatten()[[0, 47, 48, 67, 68, 74]].tolist() == [7, 54, 55, 74, 0, 6] and torch.equal(query, key)


@pytest.mark.parametrize(
    "before, tokens, wanted",
    [
        ("none", 24, (0, False, 0)),
        ("after", 29, (5, False, 0)),
        ("before", 29, (5, True, 0)),
        (5, 29, (5, True, 0)),
        (2, 29, (5, False, 2)),
        (0, 29, (5, False, 0)),
    ],
)
def test_placement(before, tokens, wanted):
    found = place((2, 3, 4), TOKENS_BEFORE_GRID.get(before, before), tokens)
    assert (found.grid.text, found.grid.text_first, found.shift) == wanted


@pytest.mark.parametrize(
    "before, tokens, reason", [("none", 25, "not on the grid"), ("after", 23, "fewer"), (3, 26, "were expected")]
)
def test_no_placement(before, tokens, reason):
    found = place((2, 3, 4), TOKENS_BEFORE_GRID.get(before, before), tokens)
    assert not isinstance(found, Placement) and reason in found


@pytest.mark.parametrize("before, tokens", [(2, 29), (5, 29), (0, 29), (0, 24)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_plan_in_the_order_of_the_sequence_is_its_mask(before, tokens, ranks):
    found = place((2, 3, 4), before, tokens, ranks)
    plan = reorder_plan(OwnBlockConfig().plan(found.grid), found.order())
    wanted = own_block_mask((2, 3, 4), before, tokens)
    if ranks > 1:
        first = before or 24
        streams = [torch.arange(tokens)[:first].tensor_split(ranks), torch.arange(tokens)[first:].tensor_split(ranks)]
        sequence = torch.cat([streams[stream][rank] for rank in range(ranks) for stream in (0, 1)])
        wanted = wanted[sequence][:, sequence]
    assert torch.equal(plan.to_dense_mask()[0, 0], wanted)


def test_key_masks():
    keys = lengths((9, 4), 9, torch.bool)
    for mask in (keys, keys[:, None, None]):
        reason, found = as_key_mask(mask, 2, 9)
        assert reason is None and torch.equal(found, keys)
    product = keys[:, None, None] & keys[:, None, :, None]
    assert as_key_mask(product, 2, 9)[0] == "a mask that is not a key mask"
    assert torch.equal(as_key_mask(product, 2, 9, "product")[1], keys)
    assert "adds" in as_key_mask(keys.float(), 2, 9)[0]
    assert "packed" in as_key_mask(keys, 2, 9, "packed")[0]
    assert "not a tensor" in as_key_mask(object(), 2, 9)[0]


def test_cross_attention_adapters_run_beside_sparse_attention():
    """FLUX's IP-Adapter attends to image tokens inside the same processor."""
    at = case("Flux")
    model = at.build()
    adapter = diffusers.models.transformers.transformer_flux.FluxIPAdapterAttnProcessor(32, 16, num_tokens=(3,))
    model.transformer_blocks[0].attn.set_processor(adapter.eval())
    extra = {"joint_attention_kwargs": {"ip_hidden_states": [normal(2, 3, 16)], "ip_adapter_masks": None}}
    dense, keys = at.run(model, **extra), list(model.state_dict())
    diffattn.enable(model, RadialConfig(density=1.0), schedule=ALWAYS)
    torch.testing.assert_close(at.run(model, **extra), dense, rtol=0, atol=1e-5)
    layer = diffattn.summary(model).models[0].layers[0]
    assert (layer.sparse_calls, layer.dense_calls) == (1, {"query and key sequences differ": 1})
    assert list(model.state_dict()) == keys
    diffattn.disable(model)
    assert model.transformer_blocks[0].attn.processor is adapter and torch.equal(at.run(model, **extra), dense)


def test_pyramids_run_on_images():
    at = case("Flux")
    model = at.build()
    dense = at.run(model)
    diffattn.enable(model, PyramidConfig(density=0.5), schedule=ALWAYS)
    sparse = at.run(model)
    assert sparse.isfinite().all() and not torch.equal(sparse, dense)
    assert diffattn.summary(model).density < 1
