"""Negative prompts together with everything else that changes a transformer or how it is called."""

import pytest
import torch
import wan
from diffusers import FirstBlockCacheConfig
from guidance.test_nag_families import texts_of
from guidance.test_nag_layers import heads, loop, run_recorded, softmax_attention
from models.builders import case
from models.pipeline_builders import PIPELINES

import diffattn
from diffattn import NAGConfig, NeighborhoodConfig, Schedule
from diffattn.guidance import guided
from diffattn.guidance.nag.hook import find_nag

CASES = {made.name: made for made in PIPELINES}
ALWAYS = Schedule(dense_start=0, dense_layers=0)
HEADS = {(0, 1): 0.6, (1, 0): 1.0}


def close(found, wanted, atol=2e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def wan_config(**options):
    embeds = torch.randn(1, 9, wan.TEXT, generator=torch.Generator().manual_seed(7))
    return NAGConfig(negative_embeds=embeds, **{"scale": 5.0, **options})


def config_of(name, **options):
    one = {key: value[:1] for key, value in texts_of(name, 5).items()}
    return NAGConfig(negative_embeds=one, **{"scale": 5.0, "alpha": 0.5, **options})


def outputs(pipe, run):
    """What the transformer returned in every call of a run."""
    seen = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    run(pipe)
    handle.remove()
    return seen


def test_with_classifier_free_guidance_only_the_pass_with_the_prompt_is_guided():
    pipe = wan.text_to_video()
    plain = outputs(pipe, lambda pipe: wan.run(pipe, 1))
    diffattn.guide(pipe, wan_config())
    cond, uncond = outputs(pipe, lambda pipe: wan.run(pipe, 1))
    assert torch.equal(uncond, plain[1]) and (cond - plain[0]).abs().max() > 1e-3
    assert torch.equal(outputs(pipe, lambda pipe: wan.run(pipe, 1, 1.0))[0], cond)


@pytest.mark.parametrize("name", ["LTXPipeline", "StableDiffusion3Pipeline"])
def test_of_a_batch_of_both_only_the_half_with_the_prompt_is_guided(name):
    made = CASES[name]
    pipe = made.build()
    plain = outputs(pipe, lambda pipe: made.run(pipe, 1, guidance_scale=4.0))[0]
    diffattn.guide(pipe, config_of(made.transformer))
    both = outputs(pipe, lambda pipe: made.run(pipe, 1, guidance_scale=4.0))[0]
    alone = outputs(pipe, lambda pipe: made.run(pipe, 1, guidance_scale=1.0))[0]
    close(both[:1], plain[:1], 2e-6)
    close(both[1:], alone, 2e-6)
    assert (both[1:] - plain[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["Wan", "Flux", "CogVideoX"])
def test_sparse_attention_comes_before_or_after_and_with_all_keys_changes_nothing(name):
    made, config = case(name), config_of(name)
    model = made.build()
    plain = made.run(model)
    diffattn.guide(model, config)
    dense = made.run(model)
    for sparse, same in (
        (NeighborhoodConfig(window=(-1, -1, -1)), True),
        (NeighborhoodConfig(window=(1, 3, 3)), False),
    ):
        found = []
        for first in ("guide", "enable"):
            diffattn.unguide(model)
            diffattn.disable(model)
            for turn_on in ("guide", "enable") if first == "guide" else ("enable", "guide"):
                if turn_on == "guide":
                    diffattn.guide(model, config)
                else:
                    diffattn.enable(model, sparse, schedule=ALWAYS, impl="torch")
            found.append(made.run(model))
        assert torch.equal(*found)
        assert ((found[0] - dense).abs().max() < 1e-5) == same
    assert diffattn.summary(model).to_dict()["sparse_calls"] > 0
    diffattn.disable(model)
    assert torch.equal(made.run(model), dense)
    diffattn.unguide(model)
    assert torch.equal(made.run(model), plain)


@pytest.mark.parametrize("name", ["Wan", "Flux"])
def test_perturbed_heads_are_perturbed_under_the_negative_prompt_in_either_order(name):
    made, config = case(name), config_of(name)
    model = made.build()
    diffattn.guide(model, config)
    guided_by_text = made.run(model)
    found = {}
    for scale in (1.0, 2.0):
        for share in (True, False):
            diffattn.guide(model, HEADS, scale=scale, share_prefix=share)
            found[scale, share] = made.run(model)
    close(found[2.0, True] - guided_by_text, 2 * (found[1.0, True] - guided_by_text))
    close(found[2.0, True], found[2.0, False])
    assert (found[1.0, True] - guided_by_text).abs().max() > 1e-4
    diffattn.unguide(model)
    diffattn.guide(model, HEADS, scale=1.0)
    only_heads = made.run(model)
    diffattn.guide(model, config)
    assert torch.equal(made.run(model), found[1.0, True]) and not torch.equal(only_heads, found[1.0, True])
    with guided(model, HEADS, scale=2.0):
        close(made.run(model), found[2.0, True], 0)
    assert torch.equal(made.run(model), guided_by_text)  # the negative prompt outlives guidance by heads


def test_heads_and_a_negative_prompt_in_a_batch_of_both():
    made = CASES["StableDiffusion3Pipeline"]
    pipe = made.build()
    diffattn.guide(pipe, config_of(made.transformer))
    diffattn.guide(pipe, HEADS, scale=2.0)
    both = outputs(pipe, lambda pipe: made.run(pipe, 1, guidance_scale=4.0))[0]
    alone = outputs(pipe, lambda pipe: made.run(pipe, 1, guidance_scale=1.0))[0]
    close(both[1:], alone)


def test_a_second_negative_prompt_replaces_the_first_and_options_of_heads_are_refused():
    pipe = wan.text_to_video()
    plain = wan.run(pipe, 1, 1.0)
    diffattn.guide(pipe, wan_config(scale=9.0))
    diffattn.guide(pipe, wan_config())
    twice = wan.run(pipe, 1, 1.0)
    for options in ({"scale": 2.0}, {"layers": [0]}, {"strength": 0.5}, {"start": 0.5}):
        with pytest.raises(TypeError, match="set its own fields, or call guide twice"):
            diffattn.guide(pipe, wan_config(), **options)
    assert len(pipe.transformer._forward_pre_hooks) == 1
    diffattn.unguide(pipe)
    diffattn.guide(pipe, wan_config())
    assert torch.equal(wan.run(pipe, 1, 1.0), twice)
    diffattn.unguide(pipe)
    assert torch.equal(wan.run(pipe, 1, 1.0), plain)


def test_a_part_of_the_run_and_what_the_summary_says():
    pipe = wan.text_to_video()
    plain = wan.run(pipe, 2, 1.0)
    diffattn.guide(pipe, wan_config(start=0.5))
    wan.run(pipe, 2, 1.0)
    assert str(diffattn.summary(pipe)).splitlines()[0] == (
        "guidance  negative prompt 'given as embeddings' by cross-attention, scale 5, tau 2.5, alpha 0.25, l1, "
        "from 0.5 to 1 of the run; 3 attention calls in 1 forwards"
    )
    assert diffattn.summary(pipe).to_dict()["nag"][0]["guided_calls"] == 3
    diffattn.guide(pipe, wan_config(stop=0.4))
    assert torch.equal(wan.run(pipe, 2, 1.0), plain)
    diffattn.guide(pipe, wan_config(scale=1))
    assert str(diffattn.summary(pipe)).splitlines()[0].endswith("; off")
    with pytest.raises(ValueError, match="the denoising step is not known here"):
        diffattn.guide(pipe.transformer, wan_config(stop=0.4))
        case("Wan").run(pipe.transformer)


@pytest.mark.parametrize("name", ["HunyuanVideoPipeline", "LTXPipeline"])
def test_a_step_cache_keeps_guided_steps_apart(name):
    made = CASES[name]
    pipe = made.build()
    diffattn.guide(pipe, config_of(made.transformer, start=0.5))
    wanted = made.run(pipe, 2, guidance_scale=1.0)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    close(made.run(pipe, 2, guidance_scale=1.0), wanted, 1e-6)


def test_offload_and_compiled_blocks():
    pipe = wan.text_to_video()
    diffattn.guide(pipe, wan_config())
    wanted = wan.run(pipe, 1, 1.0)
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    close(wan.run(pipe, 1, 1.0), wanted)
    torch._dynamo.reset()
    pipe = wan.text_to_video()
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    diffattn.guide(pipe, wan_config())
    assert torch.equal(wan.run(pipe, 1, 1.0), wanted)


def test_the_image_branch_of_wan_is_left_alone():
    made = case("Wan")
    config = {**made.config, "added_kv_proj_dim": 32, "image_dim": 4}
    model = type(made)(**{**vars(made), "config": config}).build()
    torch.manual_seed(1)
    inputs = made.inputs() | {
        "encoder_hidden_states": torch.randn(2, 512, 16),
        "encoder_hidden_states_image": torch.randn(2, 6, 4),
    }
    negative = torch.randn(1, 512, 16)
    attn = model.blocks[0].attn2
    (_, context, *_), _, _, plain = run_recorded(model, inputs, "blocks.0.attn2")
    options = {"scale": 5.0, "tau": 2.5, "alpha": 0.5, "norm": "l1"}
    diffattn.guide(model, NAGConfig(negative_embeds=negative, **options))
    (states, *_), _, found, guided_prediction = run_recorded(model, inputs, "blocks.0.attn2")
    with torch.no_grad():
        query = heads(attn.norm_q(attn.to_q(states)), 2)
        embedded = model.condition_embedder.text_embedder(negative).expand(2, -1, -1)
        texts = [
            softmax_attention(query, heads(attn.norm_k(attn.to_k(text)), 2), heads(attn.to_v(text), 2))
            for text in (context[:, 6:], embedded)
        ]
        image = heads(attn.norm_added_k(attn.add_k_proj(context[:, :6])), 2), heads(attn.add_v_proj(context[:, :6]), 2)
        wanted = attn.to_out[0]((loop(*texts, **options) + softmax_attention(query, *image)).float().flatten(2))
    close(found, wanted, 1e-5)
    assert (guided_prediction - plain).abs().max() > 1e-3
    diffattn.guide(model, NAGConfig(negative_embeds=negative[:, :100]))
    with pytest.raises(ValueError, match=r"the prompt has 512 tokens, the negative prompt 100, but blocks\.0\.attn2"):
        run_recorded(model, inputs, "blocks.0.attn2")


def test_a_shorter_or_longer_negative_prompt_is_padded_where_the_family_has_a_mask():
    made = case("QwenImage")
    model = made.build()
    texts = texts_of("QwenImage", 5)
    tokens, mask = texts["encoder_hidden_states"][:1], texts["encoder_hidden_states_mask"][:1]
    results = []
    for length in (7, 9):  # seven valid tokens both times
        padded = {
            "encoder_hidden_states": torch.nn.functional.pad(tokens, (0, 0, 0, length - 7), value=3.0),
            "encoder_hidden_states_mask": torch.nn.functional.pad(mask, (0, length - 7)),
        }
        diffattn.guide(model, NAGConfig(negative_embeds=padded))
        results.append(made.run(model))
    close(*results, 1e-6)


def test_what_cannot_work_is_an_error_that_changes_nothing():
    made = CASES["FluxPipeline"]
    pipe = made.build()
    plain = made.run(pipe, 1)
    with pytest.raises(ValueError, match="FluxPipeline has no text encoder here: give negative_embeds="):
        diffattn.guide(pipe, NAGConfig(negative="red"))
    with pytest.raises(ValueError, match="FluxTransformer2DModel has no text encoder here"):
        diffattn.guide(pipe.transformer, NAGConfig(negative=""))
    with pytest.raises(ValueError, match="FluxTransformer2DModel are encoder_hidden_states, got text"):
        diffattn.guide(pipe, NAGConfig(negative_embeds={"text": torch.zeros(1, 7, 16)}))
    assert find_nag(pipe.transformer) is None
    diffattn.guide(pipe, NAGConfig(negative_embeds=torch.zeros(1, 9, 16)))
    with pytest.raises(ValueError, match=r"the prompt has 7 tokens, the negative prompt 9, .*max_sequence_length="):
        made.run(pipe, 1)
    diffattn.guide(pipe, NAGConfig(negative_embeds=torch.zeros(3, 7, 16)))
    with pytest.raises(ValueError, match="there are 3 negative prompts for 1 videos or images"):
        made.run(pipe, 1)
    diffattn.unguide(pipe)
    assert torch.equal(made.run(pipe, 1), plain)
