"""One layer of Wan and one of FLUX under a negative prompt, against loops in float64."""

import pytest
import torch
from guidance.test_nag_formula import loop
from models.builders import case

import diffattn
from diffattn import NAGConfig

OPTIONS = {"scale": 7.0, "tau": 1.5, "alpha": 0.5, "norm": "l1"}


def softmax_attention(query, key, value):
    """`(B, S, H, D)`, row by row."""
    out = torch.empty_like(query)
    for sample in range(query.shape[0]):
        for head in range(query.shape[2]):
            q, k, v = (part[sample, :, head] for part in (query, key, value))
            for row in range(len(q)):
                weights = (k @ q[row] / q.shape[1] ** 0.5).exp()
                out[sample, row, head] = weights @ v / weights.sum()
    return out


def heads(states, count):
    return states.unflatten(-1, (count, -1))


def run_recorded(model, inputs, name):
    """What a forward gives to an attention module, and what that returns."""
    seen = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        out = model(**inputs, return_dict=False)[0]
    handle.remove()
    return *seen[0], out


def doubled(name):
    """A tiny model and its inputs in double."""
    model = case(name).build().double()
    torch.manual_seed(1)
    inputs = case(name).inputs()
    return model, {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


def test_a_layer_of_wan():
    model, inputs = doubled("Wan")
    negative = torch.randn(1, 5, 16, dtype=torch.float64)
    attn = model.blocks[0].attn2
    (_, prompt, *_), _, _, _ = run_recorded(model, inputs, "blocks.0.attn2")
    embedded = model.condition_embedder.text_embedder(negative).expand(2, -1, -1)
    diffattn.guide(model, NAGConfig(negative_embeds=negative, **OPTIONS))
    (states, *_), _, found, _ = run_recorded(model, inputs, "blocks.0.attn2")
    query = heads(attn.norm_q(attn.to_q(states)), 2)
    outputs = [
        softmax_attention(query, heads(attn.norm_k(attn.to_k(text)), 2), heads(attn.to_v(text), 2))
        for text in (prompt, embedded)
    ]
    wanted = attn.to_out[0](loop(*outputs, **OPTIONS).flatten(2))
    assert (found - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("block", ["transformer_blocks.0", "single_transformer_blocks.1"])
def test_a_layer_of_flux(block):
    model, inputs = doubled("Flux")
    negative = torch.randn(1, 7, 16, dtype=torch.float64)
    diffattn.guide(model, NAGConfig(negative_embeds=negative, **OPTIONS))
    _, given, found, prediction = run_recorded(model, inputs, f"{block}.attn")
    assert len(prediction) == 2 and len(given["hidden_states"]) == 4
    wanted = flux_layer(model.get_submodule(block).attn, given)
    found = torch.cat([found[1], found[0]], dim=1) if isinstance(found, tuple) else found
    assert (found - wanted).abs().max() < 1e-10
    image = found[:, 7:]
    assert torch.equal(image[:2], image[2:]) and not torch.equal(found[:2, :7], found[2:, :7])


def flux_layer(attn, given):
    """Rows of text, then of the image, for [prompt; negative prompt]."""
    image, text = given["hidden_states"], given.get("encoder_hidden_states")
    query, key, value = (heads(linear(image), 2) for linear in (attn.to_q, attn.to_k, attn.to_v))
    joint = [attn.norm_q(query), attn.norm_k(key), value]
    if text is not None:
        query, key, value = (heads(linear(text), 2) for linear in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        text_parts = attn.norm_added_q(query), attn.norm_added_k(key), value
        joint = [torch.cat(pair, dim=1) for pair in zip(text_parts, joint)]
    cos, sin = given["image_rotary_emb"]
    for part in (0, 1):
        single = joint[part].float()  # in which diffusers turns them
        pairs = single.unflatten(-1, (-1, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        joint[part] = (single * cos[:, None] + turned * sin[:, None]).double()
    out = softmax_attention(*joint)
    out[:2, 7:] = out[2:, 7:] = loop(out[:2, 7:], out[2:, 7:], **OPTIONS)
    out = out.flatten(2)
    if text is None:
        return out
    return torch.cat([attn.to_add_out(out[:, :7]), attn.to_out[0](out[:, 7:])], dim=1)
