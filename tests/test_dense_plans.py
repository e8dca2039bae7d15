"""Calls whose plan costs more than dense attention run on the model's own backend, counted with the reason."""

import re

import pytest
import torch
from diffattn.kernels.backends.dense import break_even
from wan import tiny_transformer

import diffattn
from diffattn import RadialConfig, Schedule, VMoBAConfig

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)


@pytest.fixture(autouse=True)
def sparse_however_small():
    """Here it is what is tested."""


@pytest.fixture(autouse=True)
def whatever_the_processor(monkeypatch):
    monkeypatch.setattr("diffattn.kernels.backends.dense.has_amx", lambda: False)


def forward(model, side=32):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 16, 5, side, side, generator=generator),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 12, 16, generator=generator),
            return_dict=False,
        )[0]


def run(config, impl="auto", compiled=False, side=32):
    """Output and layer of a model of 1280 tokens, or 5/4 of another side squared, and what dense attention gives."""
    torch._dynamo.reset()
    model = tiny_transformer(layers=1)
    dense = forward(model, side)
    diffattn.enable(model, config, schedule=ALWAYS, impl=impl)
    out = forward(torch.compile(model, backend="eager") if compiled else model, side)
    return out, diffattn.summary(model).models[0].layers[0], dense


@pytest.mark.parametrize("compiled", [False, True])
def test_a_plan_above_the_break_even_runs_dense(compiled):
    out, layer, dense = run(RadialConfig(density=0.9), compiled=compiled)
    ((reason, count),) = layer.dense_calls.items()
    assert re.fullmatch(r"the plan costs [01]\.\d\d of dense attention: dense is faster", reason)
    assert count == 1 and layer.sparse_calls == 0
    torch.testing.assert_close(out, dense)


def test_the_first_plan_decides_where_every_call_is_planned():
    _, layer, _ = run(VMoBAConfig(density=0.9))
    ((reason, count),) = layer.dense_calls.items()
    cost = float(re.match(r"the plan costs (\d\.\d\d) of dense", reason)[1])
    assert count == 1 and cost >= 0.9  # with padding


@pytest.mark.parametrize("density, sparse_calls", [(0.3, 1), (0.45, 0)])
def test_short_sequences_break_even_earlier(density, sparse_calls):
    assert break_even(320) == 0.5 - 30 / 320 and break_even(1024) < 0.5 < break_even(1025)
    _, layer, _ = run(VMoBAConfig(density=density), side=16)
    assert (layer.sparse_calls, sum(layer.dense_calls.values())) == (sparse_calls, 1 - sparse_calls)


def test_with_amx_dense_attention_is_faster_sooner(monkeypatch):
    monkeypatch.setattr("diffattn.kernels.backends.dense.has_amx", lambda: True)
    for tokens in (64, 512, 2048, 8192):
        assert 0 <= break_even(tokens, torch.bfloat16) < break_even(tokens, torch.float32) <= 0.7
        assert break_even(tokens, torch.bfloat16, "cuda") == break_even(tokens, torch.float32, "cuda")
    assert break_even(8192, torch.bfloat16, "cuda") == 0.75


@pytest.mark.parametrize("config, impl", [(RadialConfig(density=0.9), "torch"), (RadialConfig(density=0.3), "auto")])
def test_an_implementation_asked_for_and_sparser_plans_run(config, impl):
    out, layer, dense = run(config, impl)
    assert layer.sparse_calls == 1 and not layer.dense_calls
    assert not torch.equal(out, dense)
