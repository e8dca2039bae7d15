"""Muon for matrices, AdamW for the rest, and an exponential moving average of the weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of (m, n) towards 1 by quintic Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, scaled so that an update's RMS matches AdamW's at the same learning rate.

    A convolution's kernel counts as a matrix (out, rest).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update; every parameter must have a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                move = orthogonalise(param.grad.lerp(buffer, group["momentum"]).flatten(1))
                param.add_(move.view(param.shape), alpha=-0.2 * group["lr"] * max(move.shape) ** 0.5)


class Optimizers:
    """Muon on `matrices` and AdamW on `groups` of other parameters, each with a peak learning rate, stepped as one."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, groups: list[dict]) -> None:
        adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.parts = [Muon(matrices, lr), adam] if matrices else [adam]
        self._peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates, then clear the gradients."""
        for part, peaks in zip(self.parts, self._peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad()


class Average:
    """Exponential moving average of several modules, warmed up so that early steps do not linger."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.modules = [copy.deepcopy(module).eval().requires_grad_(False) for module in modules]
        self._pairs = [[p for m in side for p in m.parameters()] for side in (self.modules, modules)]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the live weights."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(*self._pairs, weight)
