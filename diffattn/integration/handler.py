"""Who is handed the attention of a transformer's processors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..models.adapter import NO_OTHERS
from .attention_inputs import AttentionInputs, RunDense
from .layer import Layer
from .placement import ONE_TOKEN
from .progress import PresentScheduler
from .run_state import Location, RunState


class AttentionHandler:
    """Base of what runs or watches the self-attention of one pipeline, all its transformers together.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): whose scheduler tells the step where the pipeline does not.
        grid (`tuple[int, int, int]`, *optional*): the token grid, where it is not to be found in the inputs.
    """

    def __init__(self, pipe: Any = None, grid: tuple[int, int, int] | None = None) -> None:
        self.scheduler, self.fixed_grid = PresentScheduler(pipe), grid
        self.layers: list[Layer] = []
        self.state = RunState()

    def is_dense_layer(self, index: int, layers: int) -> bool:
        """Whether layer `index` of `layers` runs dense in every step."""
        return False

    def begin_step(self, step: tuple[int, int] | None) -> None:
        """A forward of this thread belongs to step `(step, steps)`, None where nobody knows it."""
        self.state.step = step

    def begin_forward(
        self,
        grid: tuple[int, int, int] | None,
        before: int = NO_OTHERS,
        reason: str = "",
        tile: tuple[int, int, int] = ONE_TOKEN,
        references: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        """A transformer starts in this thread.

        Args:
            grid (`tuple[int, int, int]`, *optional*): of its visual tokens; None where there is a `reason` why not.
            before (`int`): tokens before the visual ones.
            tile (`tuple[int, int, int]`): in which they follow each other.
            references (`tuple`): sizes of the grids that follow.
        """
        state = self.state
        state.grid, state.before, state.no_grid = grid, before, reason
        state.tile, state.references = tile, references
        location = None if grid is None else Location(grid, before, state.step, tile, references)
        state.location = location and location.to_tensor()

    def begin_pass(self, name: str | None, timesteps: Tensor | None) -> None:
        """The forward that starts is a pass of a run.

        Args:
            name (`str`, *optional*): how the pipeline calls it: `"cond"`, `"uncond"`.
            timesteps (`torch.Tensor`, *optional*): those of the scheduler, which makes a new tensor for every run.
        """

    def forget_runs(self) -> None:
        """Let go of what is kept for the runs of all threads."""

    def attend(self, processor: Any, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        """The attention of one layer `(B, S, H, D)`.

        Args:
            processor (`InterceptedProcessorMixin`): which asks.
            inputs ([`AttentionInputs`]): of the whole sequence.
            run_dense (`Callable`): computes them as the model would have.
            ranks (`int`, *optional*, defaults to 1): of context parallelism, by which a joint sequence is out of
                order.
        """
        raise NotImplementedError

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "state"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, state=RunState())
