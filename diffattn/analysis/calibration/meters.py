"""What the attention of a model does while it is calibrated: it runs dense, measured at several densities or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from ...attention_config import AttentionConfig
from ...integration.attention_inputs import AttentionInputs, RunDense
from ...integration.decision import Dense, Sparse, decide
from ...integration.execute import run_plan
from ...integration.handler import AttentionHandler
from ...integration.plan_store import PlanStore
from ...kernels.attend import choose_impl
from ...schedule import Schedule

logger = logging.get_logger(__name__)
Choose = Callable[[int, int], Sequence[int] | None]  # step and layer to the heads that run sparse, None for none


class Meter(AttentionHandler):
    """Base: runs the plans of a method, and follows the steps of the run.

    Args:
        pipe (`DiffusionPipeline`): that runs.
        schedule ([`Schedule`]): its dense layers are left alone.
        on_step (`Callable`): called with the number of every step that begins.
    """

    def __init__(self, pipe: Any, schedule: Schedule, on_step: Callable[[int], None]) -> None:
        super().__init__(pipe)
        self.schedule, self.on_step = schedule, on_step
        self.step, self.steps = -1, 0

    def is_dense_layer(self, index: int, layers: int) -> bool:
        return self.schedule.is_dense_layer(index, layers)

    def begin_step(self, step: tuple[int, int] | None) -> None:
        super().begin_step(step)
        if step is None:
            raise ValueError("the denoising step is not known: calibrate needs a pipeline that follows its scheduler")
        if step[0] != self.step:
            self.step, self.steps = step
            self.on_step(self.step)

    def sparse(
        self, plans: PlanStore, processor: Any, inputs: AttentionInputs, ranks: int
    ) -> tuple[Tensor, float] | None:
        """Sparse attention of one call `(B, S, H, D)` and its density; None in a dense layer.

        Raises:
            ValueError: the call cannot be sparse, with the reason.
        """
        if processor.layer.dense:
            return None
        decision: Sparse | Dense = decide(plans, self.state, processor.layer, processor.adapter, inputs, ranks)
        if isinstance(decision, Dense):
            raise ValueError(f"{processor.layer.name} cannot be calibrated: {decision.reason}")
        plan = self.state.masked(decision.plan, decision.key_mask)
        return run_plan(plan, inputs, plans.impl), decision.plan.density


class Survey(Meter):
    """Runs dense, and measures the error that every head would make at several densities.

    Args:
        pipe, schedule, on_step: see [`Meter`].
        base ([`AttentionConfig`]): the method.
        candidates (`list[float]`): densities.
        at (`set[int]`): steps to measure in.

    Attributes:
        errors (`dict`): by step and layer, `(candidates, H)` float64, squared error of the output, all calls added.
        reached (`dict`): by step and layer, `(candidates,)` float64, density of the last plan.
    """

    def __init__(
        self, pipe: Any, schedule: Schedule, on_step: Callable, base: AttentionConfig,
        candidates: Sequence[float], at: set[int],
    ) -> None:  # fmt: skip
        super().__init__(pipe, schedule, on_step)
        self.plans, self.at = plan_stores(base, candidates, pipe), at
        self.errors: dict[tuple[int, int], Tensor] = {}
        self.reached: dict[tuple[int, int], Tensor] = {}

    def attend(self, processor: Any, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        exact = run_dense(inputs)
        if self.step in self.at and not processor.layer.dense:
            errors, reached = [], []
            for plans in self.plans:
                out, density = self.sparse(plans, processor, inputs, ranks)
                errors.append(squared_error(out, exact))
                reached.append(density)
            key = self.step, processor.layer.index
            self.errors[key] = self.errors.get(key, 0) + torch.stack(errors)
            self.reached[key] = torch.tensor(reached, dtype=torch.float64)
        return exact


class Injection(Meter):
    """Runs dense, but for some heads in some steps, and measures the error of their output.

    Args:
        pipe, schedule, on_step: see [`Meter`].
        plans ([`PlanStore`]): of the method that these heads run.
        choose (`Callable`): from step and layer to the heads, None for none.

    Attributes:
        errors (`dict[int, float]`): by step, squared error of the output of these heads.
    """

    def __init__(self, pipe: Any, schedule: Schedule, on_step: Callable, plans: PlanStore, choose: Choose) -> None:
        super().__init__(pipe, schedule, on_step)
        self.plans, self.choose = plans, choose
        self.errors: dict[int, float] = {}

    def attend(self, processor: Any, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        heads = self.choose(self.step, processor.layer.index)
        found = None if heads is None else self.sparse(self.plans, processor, inputs, ranks)
        exact = run_dense(inputs)
        if found is None:
            return exact
        heads, out = list(heads), exact.clone()
        out[:, :, heads] = found[0][:, :, heads]
        error = float(squared_error(out, exact).sum())
        self.errors[self.step] = self.errors.get(self.step, 0.0) + error
        return out


def plan_stores(base: AttentionConfig, densities: Sequence[float], pipe: Any) -> list[PlanStore]:
    """The plans of a method at each of some densities, run by the implementation of the device of a pipeline."""
    impl = choose_impl(torch.device(getattr(pipe, "_execution_device", pipe.device)))[0]
    return [PlanStore(replace(base, density=density), impl, logger.warning) for density in densities]


def squared_error(out: Tensor, exact: Tensor) -> Tensor:
    """`(H,)` float64 on the CPU, of outputs `(B, S, H, D)`."""
    return (out.float() - exact.float()).square().sum((0, 1, 3)).double().cpu()
