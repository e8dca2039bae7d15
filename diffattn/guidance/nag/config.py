"""The options of normalised attention guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..part_of_run import check_choice, check_number, is_in_part
from .defaults import NAGDefaults
from .formula import ORDERS

Embeds = Tensor | list | dict


@dataclass(frozen=True)
class NAGConfig:
    """A negative prompt for models that run without classifier-free guidance (NAG, arXiv 2505.21179).

    What is None is set by the model family, see [the guide](../nag.md).

    Args:
        negative (`str` or `list[str]`, *optional*): the negative prompt, one for all videos or one for each prompt.
            `""` guides away from the empty prompt. The pipeline's own encoder embeds it when [`guide`] is called.
        negative_embeds (`torch.Tensor`, `list` or `dict`, *optional*): its embeddings in place of `negative`, as the
            pipeline gives them to its transformer: `(B|1, N, C)`; or all text inputs of the transformer by name, such
            as `{"encoder_hidden_states": ..., "encoder_attention_mask": ...}`.
        scale (`float`, *optional*): s of [`normalised_guidance`], at least 1; 1 turns guidance off.
        tau (`float`, *optional*): the largest growth of a token's norm, at least 1.
        alpha (`float`, *optional*): the share of the guided output, from 0 (off) to 1.
        norm (`str`, *optional*): `"l1"` or `"l2"`.
        start, stop (`float`, *optional*, default to 0.0 and 1.0): the part of the run in which guidance is on.
        max_sequence_length (`int`, *optional*): tokens of the negative prompt, where the pipeline is called with
            another `max_sequence_length` than its default.

    Raises:
        ValueError: neither or both of `negative` and `negative_embeds`, or a value out of range.

    Example:

    ```python
    >>> diffattn.guide(pipe, diffattn.NAGConfig(negative="blurry, static"))
    >>> video = pipe(prompt, guidance_scale=1.0, num_inference_steps=4).frames[0]
    ```
    """

    negative: str | list[str] | None = None
    negative_embeds: Embeds | None = None
    scale: float | None = None
    tau: float | None = None
    alpha: float | None = None
    norm: str | None = None
    start: float = 0.0
    stop: float = 1.0
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        if (self.negative is None) == (self.negative_embeds is None):
            raise ValueError("give either negative= (a text, '' for the empty prompt) or negative_embeds=")
        if self.negative is not None and not _is_text(self.negative):
            raise ValueError(f"negative must be a text or a list of texts, got {self.negative!r}")
        for name, low, high in (("scale", 1, None), ("tau", 1, None), ("alpha", 0, 1)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), low, high)
        if self.norm is not None:
            check_choice("norm", self.norm, tuple(ORDERS))
        check_number("start", self.start, 0, 1)
        check_number("stop", self.stop, self.start, 1)
        length = self.max_sequence_length
        if length is not None and (type(length) is not int or length < 1):
            raise ValueError(f"max_sequence_length must be an int of at least 1, got {length!r}")

    def filled(self, defaults: NAGDefaults) -> NAGConfig:
        """With the values of the model family for those that are None."""
        chosen = {name: value for name, value in defaults._asdict().items() if getattr(self, name) is None}
        return replace(self, **chosen)

    @property
    def is_off(self) -> bool:
        """Whether the formula returns its input."""
        return self.scale == 1 or self.alpha == 0

    def is_on(self, step: tuple[int, int] | None) -> bool:
        """Whether guidance is on in step `(step, steps)`."""
        return not self.is_off and is_in_part(self.start, self.stop, step)

    def formula_options(self) -> dict[str, Any]:
        """Arguments of [`normalised_guidance`]."""
        return {name: getattr(self, name) for name in NAGDefaults._fields}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(text, str) for text in value)
    )
