"""The pipeline's parts: word-level tokenizer, small UMT5, small Wan transformer, scheduler; saving as a folder."""

import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from examples.tiny_wan.latents import CHANNELS, PATCH
from examples.tiny_wan.scenes import WORDS

SPECIAL = ("<pad>", "</s>", "<unk>")
TEXT_DIM = 64
SHIFT = 3.0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the captions; everything else is <unk>."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, padding_side="right", **special)


def build_text_encoder() -> UMT5EncoderModel:
    """UMT5, 2 layers of 4 heads x 16, trained together with the transformer."""
    config = UMT5Config(
        vocab_size=len(SPECIAL) + len(WORDS), d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    return UMT5EncoderModel(config)


# What a head looks at before training, on even and odd blocks: (gain, offset) in time, rows and columns. Gain 0
# leaves an axis free; an offset of 1.5 tokens looks at the neighbours on one side.
NEAR, FREE = (1.0, 0.0), (0.0, 0.0)
HEADS = (
    ((NEAR, NEAR, NEAR), (NEAR, NEAR, (1.0, 1.5)), (NEAR, NEAR, (1.0, -1.5)), (NEAR, FREE, FREE)),
    ((FREE, NEAR, NEAR), (NEAR, (1.0, 1.5), NEAR), (NEAR, (1.0, -1.5), NEAR), (FREE, FREE, FREE)),
)


@torch.no_grad()
def _point_heads(attention: torch.nn.Module, heads: tuple) -> None:
    """Start each head as a local window: biases on the fastest rotary pairs make scores depend on distance.

    Learning locality from nothing takes a small model most of its training.
    """
    dim = attention.inner_dim // attention.heads
    side = 2 * (dim // 6)
    axes = ((0, dim - 2 * side), (dim - 2 * side, side), (dim - side, side))
    for projection in (attention.to_q, attention.to_k):
        projection.weight.mul_(0.3)
        projection.bias.zero_()
    for head, settings in enumerate(heads):
        for (gain, offset), (first, width) in zip(settings, axes, strict=True):
            for pair in range(2):
                channel, frequency = head * dim + first + 2 * pair, 10000.0 ** (-2 * pair / width)
                # The slower pair weighs more: it tells true neighbours from the fast one's aliases 6 tokens off.
                strength = gain * (2.0, 2.8)[pair]
                attention.to_k.bias[channel] = strength
                attention.to_q.bias[channel] = strength * math.cos(offset * frequency)
                attention.to_q.bias[channel + 1] = strength * math.sin(offset * frequency)
    attention.norm_q.weight.fill_(1.5)
    attention.norm_k.weight.fill_(1.5)


def build_transformer() -> WanTransformer3DModel:
    """6 layers of 4 heads x 32: 1.76 M parameters."""
    model = WanTransformer3DModel(
        patch_size=(1, PATCH, PATCH), num_attention_heads=4, attention_head_dim=32, in_channels=CHANNELS,
        out_channels=CHANNELS, text_dim=TEXT_DIM, freq_dim=128, ffn_dim=512, num_layers=6, rope_max_seq_len=256,
    )  # fmt: skip
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    for index, block in enumerate(model.blocks):
        _point_heads(block.attn1, HEADS[index % 2])
    return model


def build_pipeline(vae: AutoencoderKLWan) -> WanPipeline:
    """An untrained pipeline around `vae`."""
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder(),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=build_transformer(),
    )


def save_pipeline(pipe: WanPipeline, folder: Path) -> None:
    """Write the folder so that transformers 4 and 5 both load it, without traces of this machine.

    transformers 5 records its own tokenizer class name, which version 4 does not know.
    """
    pipe.save_pretrained(folder)
    names = {"tokenizer": "PreTrainedTokenizerFast", "text_encoder": "UMT5EncoderModel"}
    parts = {part: ["transformers", name] for part, name in names.items()}
    portable = {"model_index.json": parts, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    for path in (folder / "model_index.json", *folder.glob("*/*config.json")):
        content = json.loads(path.read_text()) | portable.get(path.name, {})
        for name in ("_name_or_path", "is_local", "local_files_only"):
            content.pop(name, None)
        path.write_text(json.dumps(content, indent=2) + "\n")
