"""Operators made of eager functions: their gradients are those of the function, whatever the other arguments are."""

import torch
from diffattn.kernels.handles import handle_of, object_of
from diffattn.kernels.opaque import opaque_operator
from torch import Tensor

runs = []


def product(left: Tensor, right: Tensor, shift: Tensor | None, powers: list[int], name: str) -> Tensor:
    runs.append(name)
    out = sum((left @ right) ** power for power in powers)
    return (out if shift is None else out + shift).mT


def fake(left, right, shift, powers, name):
    return left.new_empty(right.shape[1], left.shape[0])


operator = opaque_operator("diffattn_tests::product", fake, differentiable=2)(product)
quiet = opaque_operator(
    "diffattn_tests::quiet", fake, differentiable=2, rerun=lambda *inputs: product(*inputs[:4], "again")
)(product)


def inputs(shift=None):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4), (4, 5)))
    return left, right, shift, [1, 2], "first"


def test_it_is_sound():
    for shift in (None, torch.arange(5.0)):
        torch.library.opcheck(operator, inputs(shift))


def test_its_gradients_are_those_of_the_function():
    for shift in (None, torch.arange(5.0)):
        given = inputs(shift)
        results = [run(*given) for run in (operator, product)]
        assert torch.equal(*results) and results[0].is_contiguous()
        grads = [torch.autograd.grad(result.sin().sum(), given[:2]) for result in results]
        torch.testing.assert_close(*grads)


def test_the_backward_runs_what_it_is_told_to():
    runs.clear()
    quiet(*inputs()).sum().backward()
    assert runs == ["first", "again"]


def test_a_handle_made_under_inference_mode_can_be_saved():
    with torch.inference_mode(), torch.device("meta"):
        handle = handle_of(operator)
    assert object_of(handle) is operator and not handle.is_inference()
