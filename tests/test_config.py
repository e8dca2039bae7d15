import json

import pytest

import diffattn
from diffattn import AttentionConfig, RadialConfig


def test_a_config_round_trips_through_json():
    config = RadialConfig(density=0.3, block_size=64)
    assert AttentionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown method 'radail', known are: .*radial"):
        diffattn.config("radail")


def test_an_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match=r"radial has no option decoy; its options are: density, decay"):
        diffattn.config("radial", decoy=1)
