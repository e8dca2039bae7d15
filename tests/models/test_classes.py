import re

import diffusers
import pytest
import torch
from packaging.version import Version

import diffattn
from diffattn import RadialConfig, Schedule
from diffattn.models import supported_models

from .builders import CASES
from .masking import MaskedAttention
from .native_builders import NATIVE
from .own_block import OwnBlockConfig

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
FULL = RadialConfig(density=1.0)


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request):
    """A case, its model and the model's dense output."""
    model = request.param.build()
    return request.param, model, request.param.run(model)


@pytest.fixture(autouse=True)
def off(request):
    yield
    if "built" in request.fixturenames:
        diffattn.disable(request.getfixturevalue("built")[1])


def processors(model):
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


def layers(model):
    return [layer for summary in diffattn.summary(model).models for layer in summary.layers]


def close(got, wanted, atol=1e-5):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def test_every_supported_class_is_here():
    known = supported_models()
    assert Version(diffusers.__version__) < Version("0.39") or all(hasattr(diffusers, name) for name in known)
    tested = {case.model for case in (*CASES, *NATIVE)}
    assert tested == {name for name in known if hasattr(diffusers, name)}


def test_full_density_is_dense_attention(built):
    case, model, dense = built
    diffattn.enable(model, FULL, schedule=ALWAYS)
    close(case.run(model), dense)
    assert all((layer.sparse_calls, layer.dense_calls) == (case.calls, case.dense) for layer in layers(model))


def test_a_plan_equals_its_mask_in_the_models_own_processors(built):
    case, model, dense = built
    with MaskedAttention(case) as masked:
        wanted = case.run(model)
    assert (wanted - dense).abs().max() > 5e-5
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    close(case.run(model), wanted)
    assert masked.calls == sum(layer.sparse_calls for layer in layers(model)) == case.calls * len(layers(model))
    assert all(layer.density < 0.999 and layer.dense_calls == case.dense for layer in layers(model))


def test_only_self_attention_over_visual_tokens_is_touched(built):
    case, model, _ = built
    before, keys = processors(model), model.state_dict().keys()
    diffattn.enable(model)
    after = processors(model)
    changed = {name for name in before if after[name] is not before[name]}
    assert changed == {name for name in before if re.fullmatch(case.attention, name)}
    assert all(isinstance(after[name], type(before[name])) for name in changed)
    assert model.state_dict().keys() == keys


def test_disable_gives_back_the_same_objects_and_the_same_bits(built):
    case, model, dense = built
    before = processors(model)
    diffattn.enable(model, OwnBlockConfig(), schedule=ALWAYS)
    assert not torch.equal(case.run(model), dense)
    diffattn.disable(model)
    after = processors(model)
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert torch.equal(case.run(model), dense)


def test_dense_layers_and_steps_are_the_dense_run(built):
    case, model, dense = built
    diffattn.enable(model, OwnBlockConfig(), schedule=Schedule(dense_start=0, dense_layers=1.0))
    close(case.run(model), dense, atol=1e-6)
    assert all(layer.dense_calls == {"dense layer": case.calls, **case.dense} for layer in layers(model))
