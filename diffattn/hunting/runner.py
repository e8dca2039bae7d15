"""Generates clips with candidate heads and scores them; knows nothing of the search."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from .._compat import quiet_pipeline
from ..guidance import GuidanceConfig, Guided, HeadSet, guided
from ..integration.apply import find_transformers
from .objective import Objective
from .prompts import PromptSeed

logger = logging.get_logger(__name__)

SET_BY_THE_SEARCH = ("prompt", "generator", "return_dict", "num_videos_per_prompt", "num_images_per_prompt", "latents")


class Runner:
    """Generates clips with chosen heads and scores them.

    Args:
        pipe (`DiffusionPipeline`): unguided.
        objective ([`Objective`]): the score.
        pairs (`list[PromptSeed]`): prompts and seeds.
        guidance ([`GuidanceConfig`], *optional*): how the heads guide.
        strength (`float`, *optional*, defaults to 1.0): u of every head.
        batch_size (`int`, *optional*, defaults to 1): candidates that are generated together. A batch is never
            smaller, as the kernels that a batch runs on may depend on its size.
        options (`dict`, *optional*): further arguments of the pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        objective: Objective,
        pairs: Sequence[PromptSeed],
        guidance: GuidanceConfig | None = None,
        strength: float = 1.0,
        batch_size: int = 1,
        options: dict | None = None,
    ) -> None:
        self.pipe, self.objective, self.pairs = pipe, objective, list(pairs)
        self.guidance, self.strength = guidance or GuidanceConfig(), strength
        self.batch_size, self.options = batch_size, {"output_type": "pt", **(options or {})}
        self.passes = 0.0
        taken = [name for name in SET_BY_THE_SEARCH if name in self.options]
        if taken:
            raise ValueError(f"a search sets {', '.join(taken)} itself: give prompts= and seeds=")

    def scores(self, pair: int, heads: Sequence[Sequence[str]]) -> list[float]:
        """Scores of one clip for each set of heads, all from the noise of one pair."""
        filled = [*heads, *[heads[-1]] * (self.batch_size - len(heads))]
        with self.guided() as run:
            run.set_heads_per_sample([list(own) for own in filled], self.strength)
            clips = self.generate(pair, len(filled), run)
        with torch.no_grad():
            found = self.judge(clips, pair)[: len(heads)]
        if not found.isfinite().all():
            logger.warning(f"a clip of prompt {pair} has no finite score and counts as the worst")
        return found.nan_to_num(-torch.inf, -torch.inf, -torch.inf).tolist()

    @contextmanager
    def guided(self) -> Iterator[Guided]:
        """Within it the pipeline is guided, at first by no heads, and shows no progress bars."""
        with quiet_pipeline(self.pipe), guided(self.pipe, HeadSet(guidance=self.guidance)) as run:
            yield run

    def generate(self, pair: int, size: int, run: Guided, **more: Any) -> Tensor:
        """Clips `(size, T, C, H, W)` in 0..1, float32, of a guided pipeline; counts the passes they take."""
        options = {**self.options, **more, "return_dict": False}
        cost = run.cost
        with count_samples(find_transformers(self.pipe)) as counted:
            made = self.pipe(**self.pairs[pair].batch(size), **options)[0]
        self.passes += counted() + size * (run.cost - cost)
        made = torch.as_tensor(made) if not isinstance(made, Tensor) else made
        return as_clips(made)

    def judge(self, clips: Tensor, pair: int) -> Tensor:
        """Scores `(B,)` of clips of one pair."""
        found = self.objective(clips, [self.pairs[pair].prompt] * len(clips))
        if not isinstance(found, Tensor) or found.shape != (len(clips),):
            got = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"objective {self.objective} must give a tensor ({len(clips)},) of scores, got {got}")
        return found

    def count_passes(self) -> tuple[int, float]:
        """Denoising steps, and passes of the transformer per unguided step, found by running one step."""
        custom = [name for name in ("sigmas", "timesteps") if self.options.get(name) is not None]
        options = dict.fromkeys(custom) | {"num_inference_steps": 1, "output_type": "latent"}
        before = self.passes
        with self.guided() as run:
            self.generate(0, 1, run, **options)
        passes, self.passes = self.passes - before, before
        return len(self.options[custom[0]]) if custom else self._steps(), passes

    def _steps(self) -> int:
        default = inspect.signature(type(self.pipe).__call__).parameters["num_inference_steps"].default
        return self.options.get("num_inference_steps", default)


def as_clips(made: Tensor) -> Tensor:
    """Images `(B, C, H, W)` as clips of one frame; float32 or wider."""
    return (made[:, None] if made.ndim == 4 else made).to(torch.promote_types(made.dtype, torch.float32))


@contextmanager
def count_samples(transformers: Sequence[nn.Module]) -> Iterator[Callable[[], int]]:
    """Count the samples that go through the transformers: two per step with classifier-free guidance."""
    total = 0

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal total
        total += len(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for transformer in transformers:
            handle = transformer.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
        yield lambda: total
