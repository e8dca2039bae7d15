import json

import huggingface_hub
import pytest
import torch
from wan import tiny_transformer

import diffattn
from diffattn import AttentionConfig, PyramidConfig, RadialConfig, Schedule
from diffattn.attention_config import SETTINGS_FILE
from diffattn.integration.hook import find_hook
from diffattn.methods import METHODS

SCHEDULE = Schedule(dense_start=3, dense_end=0.1, dense_layers=2)


def settings(model):
    runtime = find_hook(model).handler
    return runtime.config, runtime.schedule


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_read_as_it_was_written(method, tmp_path):
    config = diffattn.config(method)
    config.save_pretrained(tmp_path / "new" / "folder")
    assert AttentionConfig.from_pretrained(tmp_path / "new" / "folder") == config


def test_the_file_lies_beside_a_saved_model_and_enables_it(tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path)
    config = PyramidConfig(thresholds=(0.3, 0.5, 0.6, 0.9))
    config.save_pretrained(tmp_path, schedule=SCHEDULE)
    loaded = type(model).from_pretrained(tmp_path)
    diffattn.enable(loaded, str(tmp_path))
    assert settings(loaded) == (config, SCHEDULE)
    assert [p.layer.dense for _, p in find_hook(loaded).processors] == [True, True, False]


def test_a_schedule_that_is_given_goes_first(tmp_path):
    model = tiny_transformer()
    RadialConfig(density=0.4).save_pretrained(tmp_path, schedule=SCHEDULE)
    diffattn.enable(model, tmp_path, schedule=Schedule(dense_start=0))
    assert settings(model) == (RadialConfig(density=0.4), Schedule(dense_start=0))
    RadialConfig().save_pretrained(tmp_path)
    diffattn.enable(model, tmp_path)
    assert settings(model) == (RadialConfig(), Schedule())


def test_a_name_that_is_a_method_stays_a_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PyramidConfig().save_pretrained("radial")
    model = tiny_transformer()
    diffattn.enable(model, "radial")
    assert settings(model)[0] == RadialConfig()
    diffattn.enable(model, "./radial")
    assert settings(model)[0] == PyramidConfig()


def test_a_repository_on_the_hub(tmp_path, monkeypatch):
    """One that the Hub's client has in its cache."""
    repository = tmp_path / "models--someone--their-model"
    PyramidConfig(density=0.2).save_pretrained(repository / "snapshots" / "1234", schedule=SCHEDULE)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tiny_transformer()
    diffattn.enable(model, "someone/their-model")
    assert settings(model) == (PyramidConfig(density=0.2), SCHEDULE)
    assert AttentionConfig.from_pretrained("someone/their-model", revision="main") == PyramidConfig(density=0.2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 1 column 2"),
        ("[1]", "cannot convert"),
        ('{"density": 0.2}', "unknown method None, known are"),
        ('{"method": "radail"}', "unknown method 'radail', known are"),
        ('{"method": "radial", "colour": 1}', "radial has no option colour"),
        ('{"method": "radial", "density": 7}', "density must be"),
        ('{"method": "radial", "schedule": {"dense_begin": 1}}', "dense_begin"),
        ('{"method": "radial", "schedule": {"dense_start": -1}}', "Schedule dense_start must be"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing(text, message, tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(text)
    model = tiny_transformer(layers=1)
    before = dict(model.attn_processors)
    with pytest.raises(ValueError, match=SETTINGS_FILE) as raised:
        diffattn.enable(model, tmp_path)
    assert message in str(raised.value) and str(tmp_path) in str(raised.value)
    assert dict(model.attn_processors) == before


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    model = tiny_transformer(layers=1)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no {SETTINGS_FILE}.*save_pretrained"):
        diffattn.enable(model, tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"no/such is no folder, and {SETTINGS_FILE} could not be loaded from the Hub"):
        diffattn.enable(model, "no/such")
    with pytest.raises(OSError, match="a/b/c is no folder"):
        diffattn.enable(model, "a/b/c")
    with pytest.raises(FileNotFoundError, match="nosuch holds no"):
        diffattn.enable(model, tmp_path / "nosuch")
    with pytest.raises(ValueError, match="unknown method 'nosuch'"):
        diffattn.enable(model, "nosuch")


def test_the_file_is_readable(tmp_path):
    RadialConfig(density=0.25).save_pretrained(tmp_path, schedule=Schedule())
    values = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert values["method"] == "radial" and values["density"] == 0.25
    assert values["schedule"] == {"dense_start": 0.2, "dense_end": 0, "dense_layers": 0, "refresh": 1}


def test_a_run_from_the_file_is_the_run_of_the_config(tmp_path):
    model = tiny_transformer()
    config, schedule = RadialConfig(), Schedule(dense_start=0, dense_layers=1)
    config.save_pretrained(tmp_path, schedule=schedule)
    torch.manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(1, 16, 3, 18, 20),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 12, 16),
    }
    outputs = []
    for chosen in ({"config": config, "schedule": schedule}, {"config": str(tmp_path)}):
        diffattn.enable(model, **chosen)
        with torch.no_grad():
            outputs.append(model(**inputs).sample)
    assert torch.equal(*outputs)
