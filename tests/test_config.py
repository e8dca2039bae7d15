import json
from dataclasses import replace

import pytest

import diffattn
from diffattn import (
    AttentionConfig,
    NeighborhoodConfig,
    PyramidConfig,
    RadialConfig,
    RectifiedConfig,
    SolConfig,
    VMoBAConfig,
)


def test_a_config_round_trips_through_json():
    config = RadialConfig(density=0.3, block_size=64)
    assert AttentionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown method 'radail', known are: .*radial"):
        diffattn.config("radail")


def test_an_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match=r"radial has no option decoy; its options are: density, decay"):
        diffattn.config("radial", decoy=1)


INSTEAD_OF_DENSITY = [
    (PyramidConfig, {"thresholds": (0.4, 0.5, 0.6, 0.8)}),
    (PyramidConfig, {"quantiles": (0.1, 0.15, 0.15, 0.35)}),
    (VMoBAConfig, {"top_k": (2, 3, 4)}),
    (VMoBAConfig, {"threshold": 0.25}),
    (RectifiedConfig, {"keep": 0.2}),
    (NeighborhoodConfig, {"window": (3, 4, 5)}),
]


@pytest.mark.parametrize(("kind", "options"), INSTEAD_OF_DENSITY)
def test_the_default_density_gives_way_and_one_that_is_given_does_not(kind, options):
    assert kind().density == kind(density=None).density == 0.2
    assert kind(**options).density is None
    assert replace(kind(), **options) == kind(**options)
    with pytest.raises(ValueError, match=r"give one of density, .*: got density=0\.2 and "):
        kind(density=0.2, **options)


def test_the_decay_of_radial_gives_way_to_a_density():
    assert (RadialConfig().decay, RadialConfig().density) == (0.2, None)
    assert (RadialConfig(density=0.3).decay, RadialConfig(density=0.3).density) == (None, 0.3)
    with pytest.raises(ValueError, match=r"give one of density, decay: got density=0\.3 and decay=0\.2"):
        RadialConfig(density=0.3, decay=0.2)


def test_the_tau_of_sol_gives_way_to_a_density():
    assert (SolConfig().tau, SolConfig().density) == (1.0, None)
    assert (SolConfig(density=0.3).tau, SolConfig(density=0.3).density) == (None, 0.3)
    assert replace(SolConfig(density=0.3), density=None) == SolConfig()


def test_a_method_without_published_settings_says_so():
    with pytest.raises(ValueError, match="no published auto settings for 'wan', there are: none"):
        diffattn.AutoConfig.from_paper("wan")


def test_a_dynamic_method_asks_for_query_and_key():
    with pytest.raises(ValueError, match="plans of 'auto' depend on query and key: give both"):
        diffattn.AutoConfig().plan(diffattn.TokenGrid(1, 4, 4))
