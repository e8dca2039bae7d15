"""Text in the sequence of the image: a batch in which each sample comes a second time, with the negative text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..blocks import map_tensors
from ..outputs import predictions, with_predictions
from ..targets import LayerCall
from .forward import TwoTexts, valid_tokens
from .negative import Embedded


class JointTexts(TwoTexts):
    """Both texts go through all layers; image rows have one attention output for both, the guided one.

    So there is one image, which the prompt's text sees as it would without guidance. Pooled text stays that of the
    prompt, since it modulates the image.
    """

    enlarges_batch = True

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._wrap(stack, self.adapter.attention(self.transformer), self._attend)
            yield

    def trimmed(self, output: Any) -> Any:
        return with_predictions(output, [part[: self.batch] for part in predictions(output)])

    def _attend(self, call: LayerCall, run: Callable[[LayerCall], Tensor]) -> Tensor:
        out = run(call)
        image = self._image(out.shape[1])
        if call.key.shape[1] != out.shape[1] or image is None:  # no joint sequence: an IP-Adapter, an image alone
            return out
        self.acted += 1
        guided = self._guide(out[self.samples, image], out[self.batch :, image])
        out = out.clone()  # which the prefix of head guidance may hold
        out[self.samples, image] = guided
        out[self.batch :, image] = guided
        return out

    def _image(self, tokens: int) -> slice | None:
        """All rows but the text, so those of reference images too; None where there is no text."""
        if self._first_image_row >= 0:
            return slice(self._first_image_row, None)
        visual = math.prod(self._grid)
        if visual == tokens:
            return None
        return slice(tokens - visual, None) if self.text.text_first else slice(0, visual)

    def _extended(self, inputs: dict[str, Any], negative: Embedded) -> dict[str, Any]:
        texts = {name for pair in self.text.texts for name in pair}
        extended = {name: value if name in texts else self._doubled(name, value) for name, value in inputs.items()}
        for tokens, mask in self.text.texts:
            extended[tokens], both = self._two_texts(inputs, negative, tokens, mask)
            if both is not None:
                extended[mask] = both
        before = self.adapter.tokens_before_grid(self.transformer, extended) if self.text.text_first else -1
        self._first_image_row = before
        self._grid = self.adapter.grid(self.transformer, extended) if before < 0 else None
        return extended

    def _doubled(self, name: str, value: Any) -> Any:
        """An input with the guided samples a second time."""
        if isinstance(value, list) and name in self.text.per_sample:
            return value + value[self.samples]
        return map_tensors(
            lambda part: torch.cat([part, part[self.samples]]) if part.ndim and len(part) == self.batch else part,
            value,
        )

    def _two_texts(
        self, inputs: dict[str, Any], negative: Embedded, tokens: str, mask: str | None
    ) -> tuple[Tensor | list, Tensor | None]:
        positive, second = inputs[tokens], self._rows(negative[tokens])
        if isinstance(positive, list):
            return positive + [entry.to(positive[0]) for entry in second], None
        second = second.to(positive)
        lengths = positive.shape[1], second.shape[1]
        masks = [inputs.get(mask), negative.get(mask)]
        if lengths[0] != lengths[1] and mask is None:
            raise ValueError(
                f"the prompt has {lengths[0]} tokens, the negative prompt {lengths[1]}, and {self.text.model} has no "
                f"mask for a difference: give NAGConfig(max_sequence_length=), that of the pipeline's call"
            )
        both = torch.cat([_padded(part, max(lengths)) for part in (positive, second)])
        if lengths[0] == lengths[1] and masks == [None, None]:
            return both, None
        image = 0 if masks[0] is None else masks[0].shape[1] - lengths[0]  # Chroma's mask covers the image as well
        first = valid_tokens(None if masks[0] is None else masks[0][:, : lengths[0]], positive)
        other = valid_tokens(None if masks[1] is None else self._rows(masks[1]), second)
        found = torch.cat([_padded(part, max(lengths)) for part in (first, other.to(first))])
        return both, torch.cat([found, found.new_ones(len(found), image)], dim=1)


def _padded(states: Tensor, tokens: int) -> Tensor:
    """`(B, N, ...)` with zeros up to so many tokens."""
    missing = tokens - states.shape[1]
    return torch.cat([states, states.new_zeros(len(states), missing, *states.shape[2:])], dim=1) if missing else states
