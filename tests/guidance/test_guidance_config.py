"""The options of guidance are the fields of GuidanceConfig, everywhere."""

import inspect
from dataclasses import fields

import pytest

import diffattn
from diffattn import GuidanceConfig, HeadPerturbationGuidance

OPTIONS = {field.name for field in fields(GuidanceConfig)}


@pytest.mark.parametrize("function", [diffattn.guide, HeadPerturbationGuidance.__init__], ids=["guide", "guider"])
def test_every_option_is_in_the_signature(function):
    parameters = inspect.signature(function).parameters
    assert OPTIONS <= set(parameters) and "options" not in parameters
    assert all(parameters[name].default is None for name in OPTIONS)


def test_help_describes_every_option_of_guide_as_the_config_does():
    described = inspect.getdoc(GuidanceConfig).partition("Args:\n")[2]
    assert described in inspect.getdoc(diffattn.guide)
    assert "options (" not in inspect.getdoc(diffattn.guide)
    assert all(f"{name} (" in described or f"{name}, " in described for name in OPTIONS)


@pytest.mark.parametrize("function", [diffattn.guide, HeadPerturbationGuidance], ids=["guide", "guider"])
def test_an_option_that_does_not_exist_is_named(function):
    with pytest.raises(TypeError, match="unexpected keyword argument 'strenght'"):
        function(None, [(0, 0)], strenght=0.5)


def test_a_field_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ValueError, match="no option speed; its options are: scale, target"):
        GuidanceConfig.from_dict({"speed": 1})
