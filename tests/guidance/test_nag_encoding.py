"""The negative prompt, embedded by the pipeline's own encoder; the small one of the embedded model serves them all."""

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from models.builders import case
from transformers import AutoTokenizer, T5Config, T5EncoderModel

import diffattn
from diffattn import NAGConfig
from diffattn._compat import DTYPE
from diffattn.guidance.nag.hook import find_nag
from diffattn.guidance.nag.negative import embed_negative
from diffattn.models.text_inputs import text_inputs_for

PROMPTS = ["a red circle moves right over a blue background", "a white square moves up over a green background"]
SIZE = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> WanPipeline:
    loaded = DiffusionPipeline.from_pretrained(diffattn.tiny_wan(), **{DTYPE: torch.float32})
    loaded.set_progress_bar_config(disable=True)
    return loaded


def latents(pipe, prompt, **options):
    return pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="latent", **SIZE, **options).frames


def test_a_text_is_embedded_as_a_prompt_is_and_once(pipe):
    with torch.no_grad():
        given = pipe.encode_prompt("red", do_classifier_free_guidance=False, max_sequence_length=512)[0]
    diffattn.guide(pipe, NAGConfig(negative_embeds=given))
    wanted = latents(pipe, PROMPTS[0])
    calls = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    diffattn.guide(pipe, NAGConfig(negative="red"))
    assert calls == [1] and find_nag(pipe.transformer).config.negative == "red"
    assert torch.equal(latents(pipe, PROMPTS[0]), wanted) and calls == [1, 1]
    handle.remove()
    diffattn.guide(pipe, NAGConfig(negative=""))
    empty = latents(pipe, PROMPTS[0])
    diffattn.unguide(pipe)
    plain = latents(pipe, PROMPTS[0])
    assert not torch.equal(empty, plain) and not torch.equal(empty, wanted)


def test_one_negative_for_each_prompt_and_several_videos_of_each(pipe):
    def run(prompts, videos=1):
        return latents(pipe, prompts, num_videos_per_prompt=videos, latents=noise[: len(prompts) * videos])

    noise = torch.randn(1, pipe.transformer.config.in_channels, 2, 4, 4).expand(4, -1, -1, -1, -1)
    alone = []
    for prompt, negative in zip(PROMPTS, ("red", "white")):
        diffattn.guide(pipe, NAGConfig(negative=negative))
        alone.append(run([prompt])[0])
    diffattn.guide(pipe, NAGConfig(negative=["red", "white"]))
    four = run(PROMPTS, videos=2)
    for found, wanted in zip(four, (alone[0], alone[0], alone[1], alone[1])):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    diffattn.unguide(pipe)


def test_a_negative_prompt_longer_than_the_encoder_takes_is_an_error(pipe):
    with pytest.raises(ValueError, match=r"the negative prompt has 601 tokens, the encoder of WanPipeline takes 512"):
        diffattn.guide(pipe, NAGConfig(negative="red " * 600))
    with pytest.raises(ValueError, match="has 4 tokens, the encoder of WanPipeline takes 2"):
        diffattn.guide(pipe, NAGConfig(negative="a red circle", max_sequence_length=2))


# pipelines whose text is embedded by a T5, and what their transformers are given of it
T5 = {
    "LTXPipeline": ("LTXVideo", {"encoder_hidden_states": (1, 128, 16), "encoder_attention_mask": (1, 128)}),
    "PixArtAlphaPipeline": ("PixArt", {"encoder_hidden_states": (1, 120, 16), "encoder_attention_mask": (1, 120)}),
    "AllegroPipeline": ("Allegro", {"encoder_hidden_states": (1, 512, 16), "encoder_attention_mask": (1, 512)}),
    "ChromaPipeline": ("Chroma", {"encoder_hidden_states": (1, 512, 16), "attention_mask": (1, 512)}),
    "CogVideoXPipeline": ("CogVideoX", {"encoder_hidden_states": (1, 226, 16)}),
}


@pytest.mark.parametrize("name", T5)
def test_what_an_encoder_returns_becomes_the_inputs_of_its_transformer(name):
    made, shapes = T5[name]
    cls = getattr(diffusers, name)
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config)
    tokenizer = AutoTokenizer.from_pretrained(f"{diffattn.tiny_wan()}/tokenizer")
    parts = dict.fromkeys(cls._get_signature_keys(cls)[0])
    transformer = case(made).build()
    pipe = cls(**{**parts, "transformer": transformer, "text_encoder": encoder, "tokenizer": tokenizer})
    found = embed_negative(pipe, NAGConfig(negative="red"), text_inputs_for(transformer))
    assert {key: tuple(value.shape) for key, value in found.items()} == shapes
