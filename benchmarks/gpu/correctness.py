"""Plans of all kinds against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffattn.kernels.plan import Plan
from torch import Tensor

import diffattn
from diffattn import TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv

from .sizes import Sizes

METHODS = ("auto", "pyramid", "rectified", "vmoba", "sol", "radial")
GRIDS = (TokenGrid(5, 12, 13, text=7), TokenGrid(4, 16, 16))  # with padding and text, and without either
FACTOR = 4  # times the error of the torch implementation in the same dtype


def checks(sizes: Sizes) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every method on every grid, out and lse, and the gradients of the first grid."""
    for grid in GRIDS:
        for method in METHODS:
            for dim in sizes.dims:
                name = f"{method}, {grid.tokens} tokens, head dim {dim}"
                yield name, partial(_forward, sizes, method, grid, dim)
    for method in METHODS[:2]:
        yield f"{method}, gradients", partial(_backward, sizes, method, GRIDS[0], sizes.dims[-1])


def _inputs(sizes: Sizes, method: str, grid: TokenGrid, dim: int) -> tuple[Plan, list[Tensor]]:
    inputs = [part.to(sizes.device, sizes.dtype) for part in structured_qkv(grid, heads=2, dim=dim)]
    return diffattn.config(method).plan(grid, *inputs[:2], layer=2), inputs


def _forward(sizes: Sizes, method: str, grid: TokenGrid, dim: int) -> dict:
    plan, inputs = _inputs(sizes, method, grid, dim)
    got, plain = (attend(*inputs, plan, impl=impl, return_lse=True) for impl in (sizes.impl, "torch"))
    again = attend(*inputs, plan, impl=sizes.impl, return_lse=True)
    exact = attend(*(part.double() for part in inputs), plan, impl="reference", return_lse=True)
    same = all(torch.equal(*pair) for pair in zip(got, again))
    return _compare(got, plain, exact) | {"same bits twice": same}


def _backward(sizes: Sizes, method: str, grid: TokenGrid, dim: int) -> dict:
    plan, inputs = _inputs(sizes, method, grid, dim)

    def gradients(impl: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [part.to(dtype).requires_grad_() for part in inputs]
        out, lse = attend(*leaves, plan, impl=impl, return_lse=True)
        return torch.autograd.grad(out.square().sum() + lse.sin().sum(), leaves)

    wanted = ((sizes.impl, sizes.dtype), ("torch", sizes.dtype), ("reference", torch.float64))
    return _compare(*(gradients(*what) for what in wanted))


def _compare(got: tuple[Tensor, ...], plain: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict:
    errors, budgets = [], []
    for one, other, want in zip(got, plain, exact):
        want = want.double()
        error, torch_error = (float((part.double() - want).abs().max()) for part in (one, other))
        rounding = torch.finfo(one.dtype).eps * float(want.abs().max())
        errors.append(error)
        budgets.append(FACTOR * (torch_error + rounding))
    right = all(error <= budget for error, budget in zip(errors, budgets))  # a NaN is wrong
    return {"right": right, "errors": errors, "budgets": budgets}
