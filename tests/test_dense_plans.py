"""Plans that keep nearly all are served by the model's own dense backend, counted with the reason."""

import pytest
import torch
from wan import tiny_transformer

import diffattn
from diffattn import RadialConfig, Schedule, VMoBAConfig

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)


def forward(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 16, 5, 32, 32, generator=generator),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 12, 16, generator=generator),
            return_dict=False,
        )[0]


def run(config, impl="auto", compiled=False):
    """Output and the one layer of a model of 1280 tokens, and the output of dense attention."""
    torch._dynamo.reset()
    model = tiny_transformer(layers=1)
    dense = forward(model)
    diffattn.enable(model, config, schedule=ALWAYS, impl=impl)
    out = forward(torch.compile(model, backend="eager") if compiled else model)
    return out, diffattn.summary(model).models[0].layers[0], dense


@pytest.mark.parametrize("compiled", [False, True])
def test_a_plan_above_the_break_even_runs_dense(compiled):
    out, layer, dense = run(RadialConfig(density=0.9), compiled=compiled)
    ((reason, count),) = layer.dense_calls.items()
    assert reason.startswith("plan density 0.") and reason.endswith(": dense is faster")
    assert count == 1 and layer.sparse_calls == 0
    torch.testing.assert_close(out, dense)


def test_the_density_asked_for_decides_where_every_call_is_planned():
    _, layer, _ = run(VMoBAConfig(density=0.9))
    assert layer.dense_calls == {"plan density 0.90: dense is faster": 1}


@pytest.mark.parametrize("config, impl", [(RadialConfig(density=0.9), "torch"), (RadialConfig(density=0.5), "auto")])
def test_an_implementation_asked_for_and_sparser_plans_run(config, impl):
    out, layer, dense = run(config, impl)
    assert layer.sparse_calls == 1 and not layer.dense_calls
    assert not torch.equal(out, dense)
