"""Muon for the blocks' matrices, AdamW for the rest, and an exponential moving average of the weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of (K, m, n) towards 1 by quintic Newton-Schulz iterations, on a GPU in bf16."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


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
            params, momentum = group["params"], group["momentum"]
            gradients = [param.grad for param in params]
            buffers = [self._buffer(param) for param in params]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            updates = torch.stack(torch._foreach_lerp(gradients, buffers, momentum)).flatten(2)
            scale = 0.2 * max(updates.shape[-2:]) ** 0.5
            moves = orthogonalise(updates).reshape(-1, *params[0].shape).unbind()
            torch._foreach_add_(params, moves, alpha=-group["lr"] * scale)

    def _buffer(self, param: nn.Parameter) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        return state["momentum"]


class Optimizers:
    """Muon on `transformer.blocks` matrices and AdamW on everything else, stepped as one."""

    def __init__(
        self, transformer: nn.Module, text_encoder: nn.Module, reader: nn.Module, lr: float, text_lr: float
    ) -> None:
        matrices = [p for p in transformer.blocks.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in transformer.parameters() if id(p) not in chosen]
        groups = [{"params": rest, "lr": lr}, {"params": list(text_encoder.parameters()), "lr": text_lr}]
        groups.append({"params": list(reader.parameters()), "lr": lr})
        fused = matrices[0].is_cuda
        adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        self.parts = [Muon(matrices, lr), adam]
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates, then clear the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad()

    def state_dict(self) -> list[dict]:
        """Both optimizers' momenta, in bf16: a restart hardly tells, and a third of the file is saved."""
        return [
            {index: {name: _compact(value) for name, value in state.items()} for index, state in states.items()}
            for states in (part.state_dict()["state"] for part in self.parts)
        ]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore what `state_dict` returned; the settings stay those of this run."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(part.state_dict() | {"state": state})


def _compact(value: Tensor) -> Tensor:
    """In bf16, but for the counts of steps."""
    return value.bfloat16() if value.ndim else value


class Average:
    """Exponential moving average of several modules, warmed up so that early steps do not linger."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live, self.decay, self.steps = modules, decay, 0
        self.modules = [copy.deepcopy(module).requires_grad_(False) for module in modules]
        self._pairs = [[p for m in side for p in m.parameters()] for side in (self.modules, modules)]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the live weights."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(*self._pairs, weight)
