"""Ranks all heads by one backward pass per prompt and step.

With u as a tensor, the guided prediction `v_c + w (v_c - v_p(u))` has a gradient with respect to the strength of
every head, also where u = 0. At each step of the guided trajectory, the objective is evaluated at the clean clip that
the step predicts; its gradient is weighted by the share of the noise that the step removes. Gradients do not flow
through time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance import Guided
from ..guidance.guidance_hook import GuidanceHook, find_guidance
from ..integration.apply import find_transformers
from .denoised import clean_sample, decode, observed_steps
from .runner import Runner, as_clips


class GraphHook(GuidanceHook):
    """A [`GuidanceHook`] that keeps the autograd graph of its perturbed pass, although the pipeline keeps none."""

    graph: list[Tensor] | None = None

    @classmethod
    def in_place_of(cls, hook: GuidanceHook) -> GraphHook:
        """Replace a hook by one with the same settings."""
        replacement = cls(hook.perturber, hook.config, hook.phases, hook.cfg, hook.scheduler)
        hook.detach()
        replacement.attach()
        return replacement

    def _perturbed(self, *args) -> list[Tensor]:
        with torch.enable_grad():
            self.graph = super()._perturbed(*args)
        return [part.detach() for part in self.graph]

    def take(self) -> Tensor | None:
        """The prediction with its graph, which is not kept any longer."""
        graph, self.graph = self.graph, None
        return None if graph is None else graph[0]


class GradientScreen:
    """Estimates the gain of every head.

    Args:
        runner ([`Runner`]): of the search.
        decode (`Callable`, *optional*): latents of the scheduler to clips `(B, T, C, H, W)` in 0..1.

    Raises:
        ValueError: settings without a derivative in u: `apply_to="uncond"` and `rescale`.
    """

    def __init__(self, runner: Runner, decode: Callable[[Tensor], Tensor] | None = None) -> None:
        guidance = runner.guidance
        if guidance.apply_to != "cond" or guidance.rescale:
            raise ValueError("screen='gradient' needs apply_to='cond' and rescale=0; use screen=None")
        self.runner, self.decode = runner, decode or self._decode

    def gradients(self, selected: Sequence[str], pair: int) -> dict[str, float]:
        """Derivative of the score of one pair by the strength of every head, with the selected heads perturbed."""
        runner = self.runner
        with runner.guided() as run, frozen(runner.pipe):
            strengths = {layer: torch.zeros(1, heads) for layer, heads in run.model.layers.items()}
            for head in selected:
                layer, number = head.rsplit(":", 1)
                strengths[layer][0, int(number)] = runner.strength
            leaves = [strength.requires_grad_() for strength in strengths.values()]
            totals = self._run(pair, strengths, leaves)
        return {f"{layer}:{h}": float(g) for layer, total in zip(strengths, totals) for h, g in enumerate(total[0])}

    def _run(self, pair: int, strengths: dict[str, Tensor], leaves: list[Tensor]) -> list[Tensor]:
        pipe = self.runner.pipe
        hooks = [GraphHook.in_place_of(find_guidance(part)) for part in find_transformers(pipe)]
        run = Guided(pipe)
        run.set_strengths(strengths)
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        observed = 0

        def observe(output: Tensor, sample: Tensor, timestep: Any) -> None:
            nonlocal observed
            observed += 1
            for perturbed in [graph for graph in (hook.take() for hook in hooks) if graph is not None]:
                wanted, weight = self._wanted(output, sample, timestep, pair)
                found = torch.autograd.grad(perturbed, leaves, wanted.to(perturbed), allow_unused=True)
                self.runner.passes += 2  # what a backward pass costs
                for total, own in zip(totals, found):
                    if own is not None:
                        total.add_(own, alpha=weight)

        with observed_steps(pipe.scheduler, observe):
            self.runner.generate(pair, 1, run, output_type="latent")
        if not observed:
            raise ValueError(f"{type(pipe).__name__} does not step its scheduler: use screen=None")
        return totals

    @torch.enable_grad()
    def _wanted(self, output: Tensor, sample: Tensor, timestep: Any, pair: int) -> tuple[Tensor, float]:
        """The gradient of the objective with respect to the perturbed prediction, and the weight of the step."""
        scheduler, scale = self.runner.pipe.scheduler, self.runner.guidance.scale
        leaf = output.detach().requires_grad_()
        clean, weight = clean_sample(scheduler, leaf, sample.detach(), timestep)
        score = self.runner.judge(self.decode(clean), pair).sum()
        if not score.requires_grad:
            raise ValueError(f"objective {self.runner.objective} is not differentiable: use screen=None")
        return -scale * torch.autograd.grad(score, leaf)[0], weight

    def _decode(self, latents: Tensor) -> Tensor:
        latent = self.runner.options["output_type"] == "latent"
        return as_clips(latents) if latent else decode(self.runner.pipe, latents)


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """No weight requires a gradient, so that activations which only weight gradients need are not kept."""
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    asking = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
