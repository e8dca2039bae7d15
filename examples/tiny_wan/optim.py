"""Muon for the blocks' matrices, AdamW for the rest, and an exponential moving average of the weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of (K, m, n) towards 1 by quintic Newton-Schulz iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, scaled so that an update's RMS matches AdamW's at the same learning rate.

    One parameter group per shape, so that a group is orthogonalised in one batch; a kernel is a matrix (out, rest).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 2e-3, momentum: float = 0.95) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for param in params:
            by_shape.setdefault(param.shape, []).append(param)
        groups = [{"params": group} for group in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update; every parameter must have a gradient."""
        for group in self.param_groups:
            momenta = [self._momentum(param, group["momentum"]) for param in group["params"]]
            updates = torch.stack(momenta).flatten(2)
            scale = 0.2 * max(updates.shape[-2:]) ** 0.5
            for param, update in zip(group["params"], orthogonalise(updates), strict=True):
                param.add_(update.view_as(param), alpha=-group["lr"] * scale)

    def _momentum(self, param: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[param]
        buffer = state.setdefault("momentum", torch.zeros_like(param))
        buffer.lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(buffer, momentum)


class Optimizers:
    """Muon on `transformer.blocks` matrices and AdamW on everything else, stepped as one."""

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module, lr: float, text_lr: float) -> None:
        matrices = [p for p in transformer.blocks.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in transformer.parameters() if id(p) not in chosen]
        groups = [{"params": rest, "lr": lr}, {"params": list(text_encoder.parameters()), "lr": text_lr}]
        self.parts = [Muon(matrices, lr), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates, then clear the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict]:
        """Both optimizers' states."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore what `state_dict` returned; the peak rates stay those of this run."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Average:
    """Exponential moving average of several modules, warmed up so that early steps do not linger."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live, self.decay, self.steps = modules, decay, 0
        self.modules = [copy.deepcopy(module).requires_grad_(False) for module in modules]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the live weights."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        for average, live in zip(self.modules, self.live, strict=True):
            torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), weight)
