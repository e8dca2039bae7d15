"""Distilling along a sparse model's own sampling: `finetune.py --rollout`.

Noised truth is not what a sampler meets: guidance carries it elsewhere, and so do a model's own errors. And what moves
it there is the guided velocity, where the errors with and without the caption, times 3 and times 2, add up. On-policy
distillation asks the teacher at the states that the student reaches (DAgger, arXiv 1011.0686; GKD, arXiv 2306.13649).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

from examples.tiny_wan.batches import Batch
from examples.tiny_wan.latents import from_tokens, to_tokens
from examples.tiny_wan.text import encode_words, token_ids
from examples.tiny_wan.train import focused_error


@dataclass
class Clip:
    """Latents (1, C, T, H, W) before a `step`, their caption (1, 512, C), and `near` (1, 2, N) as in `Batch`."""

    latents: Tensor
    caption: Tensor
    near: Tensor
    step: int = 0


class Rollouts:
    """Clips on their way from noise to data, each at a step of its own: together they hold several noise levels.

    One that is done makes room for the next. The first ones start as noised truth, spread over all steps, the others
    as noise. The last step stays out: at its noise level, 0.01 or so, there is little left to do.

    Args:
        pipe (`WanPipeline`): its text encoder and its scheduler, of Euler steps.
        batches (`Iterator[Batch]`): scenes, one to a batch; those without a caption are left out.
        count (`int`): clips at a time.
        steps (`int`): of sampling.
        guidance (`float`): the guidance scale.
    """

    def __init__(self, pipe: WanPipeline, batches: Iterator[Batch], count: int, steps: int, guidance: float) -> None:
        pipe.scheduler.set_timesteps(steps)
        self.levels, self.guidance = pipe.scheduler.sigmas[:-1], guidance
        self._encoder, self._batches = pipe.text_encoder, (batch for batch in batches if batch.captions[0])
        self._nothing = encode_words(self._encoder, token_ids([""]).to(pipe.text_encoder.device))
        self.clips = [self._start(clip * (steps - 1) // count) for clip in range(count)]

    def loss(self, student: WanTransformer3DModel, teacher: WanTransformer3DModel, focus: float = 0.0) -> Tensor:
        """Mean squared error of the guided velocity, by which every clip then goes one step further."""
        latents, caption, self.near = (
            torch.cat([getattr(clip, name) for clip in self.clips]) for name in ("latents", "caption", "near")
        )
        at = torch.tensor([clip.step for clip in self.clips])
        inputs = latents, self.levels[at].to(latents.device), caption
        with torch.no_grad():
            goal = self._guided(teacher, *inputs)
        velocity = self._guided(student, *inputs)
        change = (self.levels[at + 1] - self.levels[at]).view(-1, 1, 1, 1, 1).to(latents.device)
        self._move(latents + change * velocity.detach())
        return focused_error(to_tokens(velocity), to_tokens(goal), self, focus)

    def _guided(self, model: nn.Module, latents: Tensor, sigma: Tensor, caption: Tensor) -> Tensor:
        words = torch.cat([caption, self._nothing.expand_as(caption)])
        both = model(latents.repeat(2, 1, 1, 1, 1), 1000 * sigma.repeat(2), words, return_dict=False)[0].float()
        with_words, without = both.chunk(2)
        return without.lerp(with_words, self.guidance)

    def _move(self, latents: Tensor) -> None:
        for index, clip in enumerate(self.clips):
            clip.latents, clip.step = latents[index : index + 1], clip.step + 1
            if clip.step == len(self.levels) - 1:
                self.clips[index] = self._start(0)

    def _start(self, step: int) -> Clip:
        batch = next(self._batches)
        clean = from_tokens(batch.tokens, batch.spec.grid)
        latents = clean.lerp(torch.randn_like(clean), self.levels[step].item())
        return Clip(latents, encode_words(self._encoder, batch.words), batch.near, step)
