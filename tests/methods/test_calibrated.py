"""A method with densities of its own for heads, layers and parts of the run."""

import json
from dataclasses import replace

import pytest
import torch

from diffattn import (
    AttentionConfig,
    AutoConfig,
    CalibratedConfig,
    PyramidConfig,
    RadialConfig,
    Schedule,
    TokenGrid,
    VMoBAConfig,
)

GRID = TokenGrid(3, 7, 8)
DENSITIES = [[None, [0.2, 0.4, 0.2, 1.0]], [None, [0.6, 0.2, 0.2, 0.2]]]
MEASURED = {"method": PyramidConfig().to_dict(), "schedule": Schedule(dense_start=1).to_dict()}


def calibrated(base=None, **changes):
    fields = {"densities": DENSITIES, "ends": (0.29, 1.0), "model": "Wan", "measured": MEASURED}
    return CalibratedConfig(base or PyramidConfig(), **{**fields, **changes})


def test_a_head_has_the_density_of_its_layer_and_part():
    config = calibrated()
    assert config.densities_at(1, 28, 100) == (0.2, 0.4, 0.2, 1.0)  # 0.29 * 100 is a little below 29 in float64
    assert config.densities_at(1, 29, 100) == config.densities_at(1, 99, 100) == (0.6, 0.2, 0.2, 0.2)
    assert config.densities_at(1) == pytest.approx((0.4, 0.3, 0.2, 0.6))
    with pytest.raises(ValueError, match="layer 0 was dense in the calibration"):
        config.densities_at(0, 0, 10)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_plans_are_those_of_the_base_head_by_head(kv_heads):
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, GRID.tokens, heads, 16, generator=draw) for heads in (4, kv_heads))
    levels = calibrated().plan(GRID, query, key, layer=1, step=0, steps=10).to_dense_levels()
    for head, density in enumerate(DENSITIES[0][1]):
        alone = PyramidConfig(density=density).plan(GRID, query, key).to_dense_levels()
        assert torch.equal(levels[0, head], alone[0, head])


def test_values_reach_a_base_that_wants_them():
    class Watched(AutoConfig):
        wants_value = True
        seen = []

        def _plan(self, *, value, **rest):
            self.seen.append(value.shape[2])
            return super()._plan(value=value, **rest)

    tensors = torch.randn(3, 1, GRID.tokens, 4, 16, generator=torch.Generator().manual_seed(0))
    config = calibrated(Watched(), measured={})
    assert config.wants_value and not calibrated().wants_value
    config.plan(GRID, *tensors[:2], value=tensors[2], layer=1, step=0, steps=10)
    assert sorted(Watched.seen) == [1, 1, 2]


def test_it_is_read_as_it_was_written_with_the_schedule_it_was_measured_with(tmp_path):
    config = calibrated(expected={"density": 0.3})
    assert AttentionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path)
    assert AttentionConfig.from_pretrained(tmp_path) == config
    assert config.schedule == Schedule(dense_start=1)
    assert json.loads((tmp_path / "diffattn_config.json").read_text())["schedule"]["dense_start"] == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"base": AutoConfig()}, "were measured with .*pyramid.*do not fit .*auto"),
        ({"base": PyramidConfig(block_k=32)}, "were measured with"),
        ({"base": RadialConfig(density=0.2)}, "'radial' cannot be calibrated"),
        ({"base": VMoBAConfig()}, "'vmoba' cannot be calibrated"),
        ({"densities": [[[0.2]], [[0.2, 0.2]]]}, "same layers and heads"),
        ({"densities": [[[0.2, 1.2]], [[0.2, 0.2]]]}, "density must be"),
        ({"ends": (0.5, 0.9)}, "the last part ends at 1"),
        ({"ends": (1.0,)}, "ends must be a tuple of 2"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        calibrated(**changes)


def test_another_density_of_the_base_fits():
    assert replace(calibrated(), base=PyramidConfig(density=0.7)).base.density == 0.7


def test_a_call_with_other_heads_is_refused():
    query = torch.randn(1, GRID.tokens, 2, 16)
    with pytest.raises(ValueError, match="4 heads in layer 1, not 2"):
        calibrated().plan(GRID, query, query, layer=1)
