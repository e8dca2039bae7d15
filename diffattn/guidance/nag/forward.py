"""What the two ways in which text arrives have in common: one forward of a transformer with a second text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...models.adapter import adapter_for
from ...models.text_inputs import TextInputs
from ..overrides import wrapped_attention
from ..targets import LayerCall
from .formula import normalised_guidance
from .negative import Embedded, for_samples


class TwoTexts:
    """One forward of a transformer, for the prompt and a negative prompt.

    Args:
        transformer (`nn.Module`): that runs.
        text ([`TextInputs`]): how text reaches it.
        negative (`dict`): its text inputs for the negative prompt.
        inputs (`dict`): of the forward, by name.
        samples (`slice`): the samples that are guided.
        options (`dict`): of [`normalised_guidance`].

    Attributes:
        inputs (`dict`): to run the transformer with.
        batch (`int`): samples that the caller knows of.
        acted (`int`): attention calls whose output changed.
    """

    enlarges_batch: bool

    def __init__(
        self,
        transformer: nn.Module,
        text: TextInputs,
        negative: Embedded,
        inputs: dict[str, Any],
        samples: slice,
        options: dict[str, Any],
    ) -> None:
        self.transformer, self.adapter, self.text = transformer, adapter_for(transformer), text
        first = inputs["x"] if "x" in inputs else inputs["hidden_states"]
        self.batch = len(first)
        self.samples = samples
        self.guided = len(range(self.batch)[samples])
        self.acted = 0
        self._guide = partial(normalised_guidance, **options)
        self.inputs = self._extended(inputs, negative)

    def attached(self) -> AbstractContextManager:
        """Within it this thread's attention is guided."""
        raise NotImplementedError

    def trimmed(self, output: Any) -> Any:
        """The output for the samples that the caller knows of."""
        return output

    def _extended(self, inputs: dict[str, Any], negative: Embedded) -> dict[str, Any]:
        raise NotImplementedError

    def _wrap(self, stack: ExitStack, names: list[str], act: Callable[[LayerCall, Callable], Tensor]) -> None:
        for name in names:
            stack.enter_context(wrapped_attention(self.transformer.get_submodule(name), self.adapter, act))

    def _rows(self, value: Tensor | list) -> Tensor | list:
        """The negative text with an entry for every guided sample."""
        return for_samples(value, self.guided)


def valid_tokens(mask: Tensor | None, tokens: Tensor) -> Tensor:
    """A mask `(B, N)` of tokens `(B, N, C)`, all of them without one."""
    return tokens.new_ones(tokens.shape[0], tokens.shape[-2]) if mask is None else mask


def take_rows(mask: Tensor | None, batch: int, samples: slice) -> Tensor | None:
    """A mask for some samples, where it is not the same for all."""
    return mask[samples] if isinstance(mask, Tensor) and mask.ndim > 1 and len(mask) == batch > 1 else mask
