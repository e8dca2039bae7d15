"""Where the tokens of a sequence sit in space and time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenGrid:
    """A video (or image: one frame) of visual tokens in raster order, with optional text tokens before or after it.

    Methods plan the attention between visual tokens. Attention to and from text is always exact.

    Sizes are tokens, after the VAE and the patch embedding: Wan at 480x832, 81 frames is `TokenGrid(21, 30, 52)`.

    Args:
        frames (`int`): latent frames.
        height, width (`int`): token rows and columns of a frame.
        text (`int`, *optional*, defaults to 0): text tokens of the same sequence.
        text_first (`bool`, *optional*, defaults to `False`): text before the video (CogVideoX, FLUX), not after it.
        references (`tuple`, *optional*): frames, height and width of further grids that follow the video: reference
            images, layers. Their tokens are visual ones, and no block holds tokens of two grids.

    Example:

    >>> grid = TokenGrid(21, 45, 80, text=226, text_first=True)
    >>> grid.tokens, grid.video_tokens, grid.frame_tokens, grid.video_start
    (75826, 75600, 3600, 226)
    """

    frames: int
    height: int
    width: int
    text: int = 0
    text_first: bool = False
    references: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("height", 1), ("width", 1), ("text", 0)):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < least:
                raise ValueError(f"TokenGrid {name} must be an integer of at least {least}, got {size!r}")
        for sizes in self.references:
            TokenGrid(*sizes)

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]:
        """The grid itself and its references, in the order of the sequence."""
        return (self.frames, self.height, self.width), *self.references

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame."""
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        """Visual tokens: of all frames, and of the references."""
        return self.frames * self.frame_tokens + sum(math.prod(sizes) for sizes in self.references)

    @property
    def tokens(self) -> int:
        """Tokens of the whole sequence, text included."""
        return self.video_tokens + self.text

    @property
    def video_start(self) -> int:
        """Index of the first video token."""
        return self.text if self.text_first else 0

    @property
    def text_start(self) -> int:
        """Index of the first text token."""
        return 0 if self.text_first else self.video_tokens

    def __str__(self) -> str:
        text = f" + {self.text} text tokens {'before' if self.text_first else 'after'}" if self.text else ""
        grids = " and ".join("x".join(map(str, sizes)) for sizes in self.grids)
        return f"{grids}{text}"
