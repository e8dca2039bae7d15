"""Who is handed the attention of a transformer's processors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models.adapter import NO_OTHERS
from .attention_inputs import AttentionInputs, RunDense
from .layer import Layer
from .progress import PresentScheduler
from .run_state import RunState


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

    def begin_forward(self, grid: tuple[int, int, int] | None, before: int = NO_OTHERS, reason: str = "") -> None:
        """A transformer starts in this thread.

        Args:
            grid (`tuple[int, int, int]`, *optional*): of its visual tokens; None where there is a `reason` why not.
            before (`int`): tokens before the visual ones.
        """
        state = self.state
        state.grid, state.before, state.no_grid = grid, before, reason
        with torch.inference_mode(False):  # graphs keep it for their backward
            state.location = None if grid is None else torch.tensor([*grid, before], device="cpu")

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
