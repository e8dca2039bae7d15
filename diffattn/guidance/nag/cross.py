"""Text by cross-attention: both texts in one context, whose halves the image rows read one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..overrides import overridden_forward
from ..targets import LayerCall
from .forward import TwoTexts, take_rows, valid_tokens
from .negative import Embedded


class CrossTexts(TwoTexts):
    """The negative text follows the prompt in the context: embedders and projections work token by token.

    Each layer attends to the two parts separately, with the same queries; nothing else runs twice.
    """

    enlarges_batch = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self.text.cross_attention(self.transformer):
                attention = self.transformer.get_submodule(name)
                if getattr(attention, "add_k_proj", None) is None:
                    act = self._attend
                else:
                    image = _ImageBesideText(self, name)
                    stack.enter_context(overridden_forward(attention, image.forward))
                    act = image.attend
                self._wrap(stack, [name], act)
            yield

    def _extended(self, inputs: dict[str, Any], negative: Embedded) -> dict[str, Any]:
        (tokens, mask) = self.text.texts[0]
        context = inputs[tokens]
        positive = context[0] if isinstance(context, tuple) else context  # Cosmos 2.5 adds an image context
        second = self._in_whole_batch(negative[tokens]).to(positive)
        self.positive, self.negative = positive.shape[-2], second.shape[-2]
        both = torch.cat([positive, second], dim=-2)
        extended = {**inputs, tokens: (both, *context[1:]) if isinstance(context, tuple) else both}
        masks = inputs.get(mask), negative.get(mask)
        if masks != (None, None):
            first = valid_tokens(masks[0], positive)
            other = valid_tokens(None if masks[1] is None else self._in_whole_batch(masks[1]), second)
            extended[mask] = torch.cat([first, other.to(first)], dim=-1)
        return extended

    def _in_whole_batch(self, value: Tensor) -> Tensor:
        """Samples that are not guided have a negative text too, which nobody reads."""
        rows = self._rows(value)
        return rows.repeat(self.batch // self.guided, *(1,) * (rows.ndim - 1))

    def _attend(self, call: LayerCall, run: Callable[[LayerCall], Tensor]) -> Tensor:
        if call.key.shape[1] != self.positive + self.negative:  # of something else than the text
            return run(call)
        first, second = slice(None, self.positive), slice(self.positive, None)
        return self.guide_rows(run(_for_keys(call, first)), run(_for_samples(_for_keys(call, second), self.samples)))

    def guide_rows(self, out: Tensor, negative: Tensor) -> Tensor:
        """`out` `(B, S, H, D)`, guided in the samples that `negative` is for."""
        self.acted += 1
        guided = self._guide(out[self.samples], negative)
        if self.guided == len(out):
            return guided
        out = out.clone()
        out[self.samples] = guided
        return out


class _ImageBesideText:
    """A layer of Wan that tells image and text tokens of its context apart by counting text tokens from the end.

    It runs a first time with one query and the negative text, for the keys and values that it makes of it.
    """

    def __init__(self, texts: CrossTexts, name: str) -> None:
        if texts.negative != texts.positive:
            raise ValueError(
                f"the prompt has {texts.positive} tokens, the negative prompt {texts.negative}, but {name} takes as "
                f"many of both: give NAGConfig(max_sequence_length={texts.positive})"
            )
        self.texts = texts
        self._found: tuple[Tensor, Tensor] | None = None
        self._probing = False

    def forward(self, forward: Callable) -> Callable:
        """The forward of the layer, with a context of image tokens and both texts."""

        def run(states: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            text = self.texts.negative
            image, positive, negative = context.split([context.shape[1] - 2 * text, text, text], dim=1)
            self._probing = True
            forward(states[:, :1], torch.cat([image, negative], dim=1), *args, **kwargs)
            self._probing = False
            return forward(states, torch.cat([image, positive], dim=1), *args, **kwargs)

        return run

    def attend(self, call: LayerCall, run: Callable[[LayerCall], Tensor]) -> Tensor:
        if call.key.shape[1] != self.texts.negative:  # of the image
            return run(call)
        if self._probing:
            self._found = call.key, call.value
            return run(call)
        key, value = self._found
        negative = _for_samples(replace(call, key=key, value=value), self.texts.samples)
        return self.texts.guide_rows(run(call), run(negative))


def _for_keys(call: LayerCall, keys: slice) -> LayerCall:
    mask = None if call.mask is None else call.mask[..., keys]
    return replace(call, key=call.key[:, keys], value=call.value[:, keys], mask=mask)


def _for_samples(call: LayerCall, samples: slice) -> LayerCall:
    mask = take_rows(call.mask, len(call.query), samples)
    return replace(call, query=call.query[samples], key=call.key[samples], value=call.value[samples], mask=mask)
