"""The negative prompt, embedded by the pipeline's own encoder."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...models.text_inputs import TextInputs
from .config import NAGConfig

Embedded = dict[str, Any]  # by the name of the transformer's input: a tensor, or a list with an entry per sample


def embed_negative(pipe: Any, config: NAGConfig, text: TextInputs) -> Embedded:
    """The text inputs of the transformer for the negative prompt.

    Raises:
        ValueError: `pipe` cannot encode, or the negative prompt has more tokens than its encoder takes, or
            embeddings are missing or unknown.
    """
    if config.negative_embeds is None:
        return _encode(pipe, config, text)
    tokens = [name for name, _ in text.texts]
    given = config.negative_embeds
    given = given if isinstance(given, dict) else {tokens[0]: given}
    known = {name for name in text.encoded if name is not None}
    if set(given) - known or set(tokens) - set(given):
        raise ValueError(
            f"negative_embeds of {text.model} are {', '.join(sorted(known))}, got {', '.join(sorted(given)) or 'none'}"
        )
    return {name: value for name, value in given.items() if value is not None}


@torch.no_grad()
def _encode(pipe: Any, config: NAGConfig, text: TextInputs) -> Embedded:
    encode = None if isinstance(pipe, nn.Module) else getattr(pipe, "encode_prompt", None)
    if encode is None or getattr(pipe, "text_encoder", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} has no text encoder here: give negative_embeds= in place of negative="
        )
    length = config.max_sequence_length or _default_length(pipe)
    negative = [config.negative] if isinstance(config.negative, str) else list(config.negative)
    _check_length(pipe, text, negative, length)
    wanted = {
        "device": pipe._execution_device,
        "do_classifier_free_guidance": False,
        "num_videos_per_prompt": 1,
        "num_images_per_prompt": 1,
        "max_sequence_length": length,
        "batch_size": len(negative),
    }
    parameters = inspect.signature(encode).parameters.values()
    needed = [each.name for each in parameters if each.default is each.empty and each.kind != each.VAR_KEYWORD][1:]
    names = {each.name for each in parameters}
    options = {name: value for name, value in wanted.items() if name in names and value is not None}
    found = encode(negative, **{**dict.fromkeys(needed), **options})
    found = found if isinstance(found, tuple) else (found,)
    found = found if text.connect is None else text.connect(pipe, found)
    pipe.maybe_free_model_hooks()  # under offload the encoder leaves as it does after a run
    return {name: value for name, value in zip(text.encoded, found) if name is not None and value is not None}


def _default_length(pipe: Any) -> int | None:
    """That of a call of the pipeline, which may differ from the one of `encode_prompt`."""
    found = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return None if found is None else found.default


def _check_length(pipe: Any, text: TextInputs, negative: list[str], length: int | None) -> None:
    """Encoders cut what is too long, which would leave a part of the negative prompt out."""
    tokenizer = next(filter(None, (getattr(pipe, name, None) for name in text.tokenizers)), None)
    if tokenizer is None:
        return
    most = min(length or tokenizer.model_max_length, tokenizer.model_max_length)
    for prompt in negative:
        tokens = len(tokenizer(prompt, truncation=False)["input_ids"])
        if tokens > most:
            raise ValueError(
                f"the negative prompt has {tokens} tokens, the encoder of {type(pipe).__name__} takes {most}: shorten "
                f"{prompt[:60]!r}..., or give max_sequence_length="
            )


def for_samples(value: Tensor | list, samples: int) -> Tensor | list:
    """Embeddings of one negative prompt for all samples, or of one for each prompt, an entry per sample.

    Raises:
        ValueError: the samples are no multiple of the negative prompts.
    """
    if samples % len(value):
        raise ValueError(
            f"there are {len(value)} negative prompts for {samples} videos or images: give one, or as many "
            "as there are prompts"
        )
    each = samples // len(value)
    return (
        [entry for entry in value for _ in range(each)]
        if isinstance(value, list)
        else value.repeat_interleave(each, 0)
    )
