"""Negative prompts in every family whose text is known, on the real classes."""

import pytest
import torch
from models.builders import CASES, case

import diffattn
from diffattn import NAGConfig
from diffattn.guidance.nag.hook import find_nag
from diffattn.models.adapter import adapter_for
from diffattn.models.text_inputs import TEXTS, text_inputs_for

KNOWN = {text.model: text for text in TEXTS}
# the tiny configuration of Animate has an image in the context, and no branch for it
FAMILIES = [str(made) for made in CASES if made.model in KNOWN and str(made) != "WanAnimate"]
CROSS = [name for name in FAMILIES if KNOWN[case(name).model].cross_attention is not None]
JOINT = [name for name in FAMILIES if name not in CROSS]
TEXT = 7


def texts_of(name: str, seed: int) -> dict:
    """The text inputs of a case, drawn by a seed."""
    torch.manual_seed(seed)
    inputs, names = case(name).inputs(), filter(None, KNOWN[case(name).model].encoded)
    given = {key: inputs[key] for key in names if inputs.get(key) is not None}
    given = {key: value[0] if isinstance(value, tuple) else value for key, value in given.items()}
    if "attention_mask" in given:
        given["attention_mask"] = given["attention_mask"][:, :TEXT]  # Chroma's goes on over the image
    return given


def with_first_layer(made, model):
    """The result of a run, and image and text rows that left its first self-attention."""
    seen = []
    name = adapter_for(model).attention(model)[0]
    with_hook = model.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append(out))
    result = made.run(model)
    with_hook.remove()
    out = seen[0] if isinstance(seen[0], tuple) else (seen[0][:, :48], seen[0][:, 48:])  # Z-Image has one sequence
    return result, *out


def guide(model, name, seed=5, **options):
    diffattn.guide(model, NAGConfig(negative_embeds=texts_of(name, seed), **{"scale": 5.0, **options}))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_guided_and_left_as_it_was(name):
    made = case(name)
    model = made.build()
    plain, image, text = with_first_layer(made, model)
    for off in ({"scale": 1}, {"alpha": 0}):
        guide(model, name, **off)
        assert torch.equal(made.run(model), plain)
    guide(model, name, seed=1)  # the prompt itself
    torch.testing.assert_close(made.run(model), plain, rtol=0, atol=2e-6)
    guide(model, name)
    guided, guided_image, guided_text = with_first_layer(made, model)
    assert (guided - plain).abs().max() > 1e-3
    if name in JOINT:
        check_rows(image, text, guided_image, guided_text)
        assert find_nag(model).calls == sum("attn2" not in layer for layer in adapter_for(model).attention(model))
    else:
        assert find_nag(model).calls == len(text_inputs_for(model).cross_attention(model)) > 0
    diffattn.unguide(model)
    assert torch.equal(made.run(model), plain) and not model._forward_hooks and not model._forward_pre_hooks


def check_rows(image, text, guided_image, guided_text):
    """One layer of a joint sequence, with each sample a second time for the negative prompt."""
    batch = len(image)
    torch.testing.assert_close(guided_text[:batch], text, rtol=0, atol=1e-6)
    assert (guided_text[batch:] - text).abs().max() > 1e-4
    assert (guided_image[:batch] - image).abs().max() > 1e-4
    assert torch.equal(guided_image[:batch], guided_image[batch:])


@pytest.mark.parametrize("name", ["Kandinsky5", "Mochi"])
def test_a_family_whose_text_is_not_known_is_an_error(name):
    with pytest.raises(ValueError, match=r"a negative prompt cannot reach .*: known are Allegro"):
        diffattn.guide(case(name).build(), NAGConfig(negative_embeds=torch.zeros(1, 7, 16)))
