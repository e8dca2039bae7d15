"""torch.compile in its three forms: whole graphs, few of them, and the eager result."""

import pytest
import torch

import diffattn
from diffattn import Schedule
from diffattn.integration.compiled import compiled_attention
from diffattn.integration.hook import find_hook

from .builders import case
from .own_block import OwnBlockConfig

SCHEDULE = Schedule(dense_start=2, dense_layers=1)
STEPS = 3


class Counting:
    """Dynamo backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return module.forward


def whole(model, backend):
    model.compile(backend=backend, fullgraph=True)
    return model


def wrapped(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


def repeated(model, backend):
    model.compile_repeated_blocks(backend=backend, fullgraph=True)
    return model


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def with_layers(name, **layers):
    made = case(name)
    return type(made)(**{**vars(made), "config": {**made.config, **layers}})


def steps(at, model):
    """Outputs of a denoising run, each under the context that a pipeline gives."""
    outputs = []
    for step in range(STEPS):
        with model.cache_context("cond", step_index=step, num_inference_steps=STEPS):
            outputs.append(at.run(model))
    return torch.stack(outputs)


def calls(model):
    return [layer.sparse_calls for m in diffattn.summary(model).models for layer in m.layers]


@pytest.mark.parametrize(
    "at, form, graphs",
    [
        (with_layers("Wan"), whole, 2),
        (with_layers("Wan"), wrapped, 2),
        # more layers than Dynamo is willing to make graphs for
        (with_layers("Wan", num_layers=10), repeated, 2),
        (with_layers("Flux"), repeated, 4),
    ],
    ids=["Wan-whole", "Wan-wrapped", "Wan-repeated", "Flux-repeated"],
)
def test_compiled_runs_are_the_eager_run(at, form, graphs):
    model = at.build()
    diffattn.enable(model, OwnBlockConfig(), schedule=SCHEDULE)
    wanted = steps(at, model)
    eager, backend = calls(model), Counting()
    assert eager[0] == 0 and set(eager[1:]) == {STEPS - 2}
    compiled = form(model, backend)
    torch.testing.assert_close(steps(at, compiled), wanted, rtol=0, atol=1e-6)
    assert calls(model) == [2 * count for count in eager]
    assert 1 < backend.graphs <= graphs


def test_a_whole_graph_that_cannot_learn_its_step_is_named():
    """SD3 has no cache_context: blocks on their own, or no dense steps, work."""
    at = case("SD3")
    model = at.build()
    model.compile(backend=Counting(), fullgraph=True)
    diffattn.enable(model, OwnBlockConfig(), schedule=SCHEDULE)
    with pytest.raises(Exception, match=r"cannot learn which step it runs.*compile_repeated_blocks"):
        at.run(model)
    diffattn.enable(model, OwnBlockConfig(), schedule=Schedule(dense_start=0, dense_layers=1))
    at.run(model)
    assert calls(model) == [0, 1, 1]


def by_type(model):
    """A counting backend for each type of repeated blocks, used as `compile_repeated_blocks` does."""
    backends = {name: Counting() for name in model._repeated_blocks}
    for module in model.modules():
        if type(module).__name__ in backends:
            module.compile(backend=backends[type(module).__name__], fullgraph=True)
    return backends


def test_sparse_and_dense_steps_take_two_graphs_for_every_one_of_the_model():
    """The model alone makes two of single blocks: the first of them is given tensors of another layout."""
    at = with_layers("HunyuanVideo", num_layers=2, num_single_layers=2)
    model = at.build()
    dense = by_type(model)
    at.run(model)
    torch._dynamo.reset()
    diffattn.enable(model, OwnBlockConfig(), schedule=SCHEDULE)
    eager = at.build()
    diffattn.enable(eager, OwnBlockConfig(), schedule=SCHEDULE)
    wanted = steps(at, eager)
    backends = by_type(model)
    torch.testing.assert_close(steps(at, model), wanted, rtol=0, atol=1e-6)
    graphs = {name: backend.graphs for name, backend in backends.items()}
    for name, count in graphs.items():
        attends = name in ("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock")
        assert count == (1 + attends) * dense[name].graphs, name
    steps(at, model)
    assert {name: backend.graphs for name, backend in backends.items()} == graphs


def test_gradients_of_the_operator_are_those_of_the_eager_call():
    at = case("Wan")
    model = at.build()
    diffattn.enable(model, OwnBlockConfig(), schedule=Schedule(dense_start=0, dense_layers=0))
    at.run(model)
    processor = find_hook(model).served[0][1]
    runtime = processor.runtime
    inputs = [torch.randn(2, 72, 2, 16, requires_grad=True) for _ in range(3)]
    eager = runtime.run(processor.layer, *inputs, runtime.place(72, at.grid, runtime.before), None, None)
    compiled = compiled_attention(*inputs, None, processor.handle, [*at.grid, runtime.before], None)
    grad = torch.randn(2, 72, 2, 16)
    assert torch.equal(compiled, eager)
    wanted = torch.autograd.grad(eager, inputs, grad)
    assert all(torch.equal(got, exact) for got, exact in zip(torch.autograd.grad(compiled, inputs, grad), wanted))
