"""Attention in compiled graphs: one node, the eager result, and no new graph for another plan."""

import copy
import pickle

import pytest
import torch
from diffattn.kernels.attend import attend_operator

import diffattn
from diffattn import Plan, RadialConfig, TileList, TokenGrid, VMoBAConfig, attend
from diffattn.functional import sparse_attention_operator

GRID = TokenGrid(3, 4, 8, text=5)


class Counting:
    """Dynamo backend that runs graphs as they are, counts them, and keeps their calls."""

    def __init__(self):
        self.graphs = []

    def __call__(self, module, inputs):
        self.graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plan_of(seed, tokens=64):
    mask = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) < 0.7
    return Plan(tokens, torch.arange(tokens)[None, None], (TileList.from_mask(mask, 16),), 16)


def tensors(tokens=64, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, tokens, 2, 8, generator=generator).requires_grad_(requires_grad) for _ in range(3)]


def test_attend_is_a_sound_operator():
    plan = plan_of(0)
    torch.library.opcheck(attend_operator, (*tensors(requires_grad=True), plan.handle, None, "torch", False))


def test_sparse_attention_is_a_sound_operator():
    mask = torch.arange(GRID.tokens)[None] < GRID.tokens - 2
    config = VMoBAConfig(density=0.5)
    others = (mask, [3, 4, 8, 5, 0], None, config.handle, 0, None, "torch")
    torch.library.opcheck(sparse_attention_operator, (*tensors(GRID.tokens, requires_grad=True), *others))


def test_another_plan_is_not_another_graph():
    backend = Counting()
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    query, key, value = tensors(requires_grad=True)
    for seed in range(3):
        plan = plan_of(seed)
        results = [run(query, key, value, plan, return_lse=True) for run in (compiled, attend)]
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad((out * out).sum() + lse.sum(), (query, key, value)) for out, lse in results]
        torch.testing.assert_close(*grads)
    ((*calls, last),) = backend.graphs
    assert [call for call in (*calls, last) if "diffattn" in call] == ["diffattn.attend.default"]


@pytest.mark.parametrize("config", ["radial", RadialConfig(density=0.6), VMoBAConfig(density=0.5)])
def test_sparse_attention_is_one_node(config):
    backend = Counting()
    compiled = torch.compile(diffattn.sparse_attention, fullgraph=True, backend=backend)
    for scale in (None, 0.2):
        inputs = [(1 + (scale or 0)) * tensor for tensor in tensors(GRID.tokens)]
        got, wanted = (run(*inputs, grid=GRID, config=config) for run in (compiled, diffattn.sparse_attention))
        torch.testing.assert_close(got, wanted)
    (calls,) = backend.graphs
    assert [call for call in calls if "diffattn" in call] == ["diffattn.sparse_attention.default"]


def test_options_of_a_method_are_not_frozen_into_a_graph():
    compiled = torch.compile(diffattn.sparse_attention, fullgraph=True, backend=Counting())
    for density in (0.5, 1.0):
        inputs, config = tensors(GRID.tokens), VMoBAConfig(density=density)
        got, wanted = (run(*inputs, grid=GRID, config=config) for run in (compiled, diffattn.sparse_attention))
        torch.testing.assert_close(got, wanted)


def test_copies_of_plans_have_handles_of_their_own():
    plan = plan_of(0)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert int(other.handle) != int(plan.handle)
        assert torch.equal(*(attend_operator(*tensors(), p.handle, None, "torch", False)[0] for p in (plan, other)))
