"""The search for heads, from a pipeline and an objective to a head set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from ..guidance import GuidanceConfig, HeadSet, resolve_heads
from ..guidance.guidance_hook import find_guidance
from ..guidance.head_set import describe_model
from ..guidance.model import ModelMap, map_model
from ..guidance.strengths import check_strength
from ..integration.apply import find_transformers
from ..integration.hook import find_hook
from .gradient import GradientScreen
from .hunt_report import write_report
from .log import fingerprint
from .objectives import as_objective
from .prompts import describe, make_pairs
from .runner import Runner
from .search import BASELINE, Estimate, Round, Settings, estimate_cost, search
from .work import Work

logger = logging.get_logger(__name__)


def hunt(
    pipe: Any,
    objective: Callable[[Tensor, list[str]], Tensor] | str,
    prompts: Iterable[str | dict],
    *,
    seeds: Sequence[int] | None = None,
    rounds: int = 5,
    top_k: int = 3,
    screen: str | None = None,
    keep: float | int = 0.25,
    halving: bool = True,
    scale: float | None = None,
    strength: float = 1.0,
    guidance: GuidanceConfig | None = None,
    batch_size: int = 1,
    resume: str | Path | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
    **options: Any,
) -> HeadSet:
    """Find the attention heads whose perturbation guides best (HeadHunter, arXiv 2506.10978, Algorithm 1).

    Every round tries each remaining head together with the heads selected so far, and adds the `top_k` best. The
    published search is `screen=None, halving=False`; a screen and halving find similar heads in far fewer passes.

    Args:
        pipe (`DiffusionPipeline`): unguided, of any class that [`guide`] supports.
        objective (`Callable` or `str`): clips `(B, T, C, H, W)` in 0..1 and their prompts to scores `(B,)`, or the
            name of a built-in one, see [`Objective`].
        prompts (`list`): strings, or dicts of pipeline inputs for one sample each (images, embeddings `(1, ...)`).
        seeds (`list[int]`, *optional*): one for each prompt; 0, 1, 2, ... by default.
        rounds, top_k, screen, keep, halving (*optional*): see [`~hunting.search.Settings`].
        scale (`float`, *optional*, defaults to 3.0): w, the same for every number of heads.
        strength (`float`, *optional*, defaults to 1.0): u of every head, above 0 and at most 1.
        guidance ([`GuidanceConfig`], *optional*): target, rows, start, stop and the like.
        batch_size (`int`, *optional*, defaults to 1): candidates that are generated together.
        resume (`str`, *optional*): folder for the log, and for a report at the end. A search that was killed
            resumes from it and finds the same heads; `rounds` may grow.
        decode (`Callable`, *optional*): for the gradient screen of pipelines whose decoding is not known: from
            samples of the scheduler to clips, differentiably.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        options (*optional*): arguments of the pipeline: `height`, `num_inference_steps`, `guidance_scale`, ...

    Returns:
        [`HeadSet`]: in the order of selection; its `search` holds the scores and the cost.

    Raises:
        ValueError: impossible settings, a pipeline that is guided already, or a folder of another search.

    Example:

    ```python
    >>> heads = diffattn.hunt(pipe, "sharpness", prompts, rounds=2, screen="gradient", resume="run/")
    >>> heads.save("sharp.json")
    >>> diffattn.guide(pipe, heads)
    ```
    """
    hunter = Hunter(pipe, objective, prompts, seeds, Settings(rounds, top_k, screen, keep, halving))
    hunter.set_up(scale, strength, guidance, batch_size, decode, options)
    return hunter.run(None if resume is None else Path(resume), progress)


def estimate(pipe: Any, prompts: Iterable[str | dict], **arguments: Any) -> Estimate:
    """The cost of [`hunt`] with these arguments. Runs one denoising step to count the passes of the pipeline."""
    names = ("seeds", "rounds", "top_k", "screen", "keep", "halving")
    chosen = {name: arguments.pop(name) for name in names if name in arguments}
    seeds = chosen.pop("seeds", None)
    hunter = Hunter(pipe, lambda videos, prompts: videos[:, 0, 0, 0, 0], prompts, seeds, Settings(**chosen))
    setup = ("scale", "strength", "guidance", "batch_size", "decode")
    given = {name: arguments.pop(name) for name in setup if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in ("objective", "resume", "progress")}
    hunter.set_up(**given, options=options)
    return hunter.estimate()


@dataclass
class Hunter:
    """One search: the pipeline, the objective and the settings that its parts share."""

    pipe: Any
    objective: Any
    prompts: Iterable[str | dict]
    seeds: Sequence[int] | None
    settings: Settings

    def __post_init__(self) -> None:
        transformers = find_transformers(self.pipe)
        if any(find_guidance(part) for part in transformers):
            raise ValueError("the pipeline is guided already: call diffattn.unguide(pipe) before a search")
        self.objective = as_objective(self.objective)
        self.pairs = make_pairs(self.prompts, self.seeds)
        self.model: ModelMap = map_model(transformers[0])
        self.pool = [f"{layer}:{head}" for layer, heads in self.model.layers.items() for head in range(heads)]
        self.settings.check_pool(len(self.pool))

    def set_up(
        self,
        scale: float | None = None,
        strength: float = 1.0,
        guidance: GuidanceConfig | None = None,
        batch_size: int = 1,
        decode: Callable[[Tensor], Tensor] | None = None,
        options: dict | None = None,
    ) -> None:
        """Check and set how clips are generated."""
        check_strength(strength)
        if strength == 0:
            raise ValueError("strength must be above 0: heads with strength 0 change nothing")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        guidance = (guidance or GuidanceConfig()).changed(scale=scale)
        if guidance.schedule:
            raise ValueError("a search has one scale for all steps: give guidance without a schedule")
        self.runner = Runner(self.pipe, self.objective, self.pairs, guidance, strength, batch_size, options)
        self.screen = GradientScreen(self.runner, decode) if self.settings.screen else None

    def estimate(self) -> Estimate:
        """Clips and passes."""
        steps, passes = self.runner.count_passes()
        return estimate_cost(self.settings, len(self.pool), len(self.pairs), steps, passes)

    def run(self, folder: Path | None, progress: bool) -> HeadSet:
        """The whole search."""
        cost = self.estimate()
        logger.info(f"search of {len(self.pool)} heads for {self.objective}: {cost}")
        with Work(self.runner, self.screen, self.pool, folder, self.describe(), cost if progress else None) as work:
            found = list(search(self.settings, self.pool, len(self.pairs), work.score, work.screened))
            selected = [head for one in found for head in one.chosen]
            every = range(len(self.pairs))
            last = work.score(selected, [BASELINE], every)
            score = sum(last[BASELINE, pair] for pair in every) / len(every)
        heads = self.head_set(selected, found, score, round(work.passes, 1), work.clips)
        if folder is not None and work.rank == 0:
            write_report(folder, self.model, heads, found)
        return heads

    def head_set(self, selected: list[str], found: list[Round], score: float, passes: float, clips: int) -> HeadSet:
        """The result, with the scores and the cost in `search`."""
        heads = resolve_heads(self.model, selected, strength=self.runner.strength, guidance=self.runner.guidance)
        heads.search.update(
            objective=self.objective.name,
            **self.settings.to_dict(),
            prompts=len(self.pairs),
            unguided=found[0].baseline,
            scores=[*(one.baseline for one in found[1:]), score],
            clips=clips,
            passes=passes,
            options=self.describe()["options"],
        )
        return heads

    def describe(self) -> dict:
        """Everything that scores depend on, JSON-ready; they do not depend on the number of rounds."""
        settings, runner = self.settings.to_dict(), self.runner
        del settings["rounds"]
        sparse = find_hook(find_transformers(self.pipe)[0])
        scheduler = self.pipe.scheduler
        return {
            "pipeline": type(self.pipe).__name__,
            "model": describe_model(self.model),
            "weights": fingerprint([sample_weights(part) for part in find_transformers(self.pipe)]),
            "scheduler": fingerprint([type(scheduler).__name__, describe(dict(scheduler.config))]),
            "attention": None if sparse is None else sparse.handler.config.to_dict(),
            "objective": self.objective.name,
            "prompts": [pair.fingerprint() for pair in self.pairs],
            "seeds": [pair.seed for pair in self.pairs],
            "settings": settings,
            "guidance": runner.guidance.to_dict(),
            "strength": runner.strength,
            "batch_size": runner.batch_size,
            "options": describe(runner.options),
        }


def sample_weights(transformer: torch.nn.Module) -> list[float]:
    """A few sums over every weight in memory, to tell checkpoints apart."""
    return [
        float(weight.detach().flatten()[:8].double().sum())
        for weight in transformer.parameters()
        if not weight.is_meta
    ]
