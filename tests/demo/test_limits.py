"""What may be asked of the demo, and what may be read."""

import math
from dataclasses import fields, replace

import pytest

pytest.importorskip("gradio")

from diffattn import tiny_wan
from diffattn.demo import Limits, Models, Request, Worker, build_demo

GOOD = Request("a red circle", steps=2)


def test_a_good_request_comes_back_with_whole_numbers():
    checked = Limits().check(replace(GOOD, steps=3.0, width=64.0, heads=["2:1", "0:3", "2:1"]))
    assert checked == replace(GOOD, steps=3, width=64, heads=("2:1", "0:3")) and isinstance(checked.steps, int)
    assert checked.inputs["num_inference_steps"] == 3 and checked.schedule.dense_start == 0.2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"prompt": "  "}, "Type a prompt first."),
        ({"prompt": None}, "Type a prompt first."),
        ({"prompt": "x" * 501}, "The prompt may have 500 characters, this one has 501."),
        ({"nag": "x" * 501}, "The negative prompt must be a text of at most 500 characters."),
        ({"nag": None}, "The negative prompt must be a text of at most 500 characters."),
        ({"steps": 0}, "Steps must be from 1 to 50, not 0."),
        ({"steps": 51}, "Steps must be from 1 to 50, not 51."),
        ({"steps": 2.5}, "Steps must be a whole number, not 2.5."),
        ({"steps": None}, "Steps must be a number, not empty."),
        ({"steps": True}, "Steps must be a number, not True."),
        ({"frames": 66}, "Frames must be from 1 to 65, not 66."),
        ({"width": 257}, "Width must be from 16 to 256, not 257."),
        ({"height": 8}, "Height must be from 16 to 256, not 8."),
        ({"seed": -1}, "Seed must be from 0 to 4294967295, not -1."),
        ({"guidance_scale": math.nan}, "Guidance scale must be a number, not nan."),
        ({"guidance_scale": -1}, "Guidance scale must be from 0 to 50, not -1."),
        ({"density": 0}, "density must be above 0 and at most 1, got 0"),
        ({"dense_start": 2}, "dense_start must be a fraction"),
        ({"head_scale": 51}, "Head scale must be from 0 to 50, not 51."),
        ({"head_strength": -0.1}, "Head strength must be from 0 to 1, not -0.1."),
        ({"heads": "1:2"}, "Heads must be a list of layer:head, not '1:2'."),
        ({"heads": ["1:2", "one:2"]}, "A head is layer:head, such as 4:1, not 'one:2'."),
        ({"heads": ["blocks.1.attn1:2"]}, "A head is layer:head, such as 4:1, not 'blocks.1.attn1:2'."),
        ({"heads": [{}]}, "A head is layer:head, such as 4:1, not '{}'."),
        ({"method": "../x"}, "unknown method '../x'"),
    ],
)
def test_a_wrong_value_is_named_with_its_range(values, message):
    with pytest.raises(ValueError) as error:
        Limits().check(replace(GOOD, **values))
    assert message in str(error.value)


def test_limits_are_checked_and_follow_the_device():
    with pytest.raises(ValueError, match="Limits queue must be an integer of at least 1, got 0"):
        Limits(queue=0)
    assert Limits.of("cpu").side < Limits.of("cuda").side


@pytest.fixture
def root(tmp_path):
    """A folder of models with one inside, one link to a model outside, and one model outside."""
    for folder in ("models/one", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model_index.json").write_text("{}")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "models" / "empty").mkdir()
    return tmp_path / "models"


def test_models_below_the_root_and_the_embedded_one(root):
    models = Models(root, hub=False)
    assert models.resolve("tiny") == "tiny" and models.resolve(" one ") == str(root / "one")
    assert models.resolve(str(root / "one")) == models.resolve("./one/../one") == str(root / "one")
    assert models.choices == ["tiny", "one"]


@pytest.mark.parametrize(
    "name",
    ["../outside", "{out}", "link", "one/../../outside", "empty", "", "~", "/", "one\0", "a/b", None, tiny_wan()],
)
def test_nothing_outside_the_root_is_loaded(root, name):
    name = name and name.format(out=root.parent / "outside")
    with pytest.raises(ValueError, match="must be 'tiny' or a folder among the models") as error:
        Models(root, hub=False).resolve(name)
    assert str(root) not in str(error.value)


@pytest.mark.parametrize(
    "name", ["../b", "a/..", "/etc", "a/b/c", "file:///etc/passwd", "https://a/b", "a\\b", ".a/b"]
)
def test_what_is_no_hub_id_is_refused_even_with_the_hub(name):
    with pytest.raises(ValueError, match="a hub id such as"):
        Models(hub=True).check(name)


def test_a_hub_id_never_reads_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError):
        Models(hub=True).resolve("owner/name")


def test_a_root_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Models(tmp_path / "nowhere")


def test_the_page_is_built_without_launching_and_has_a_control_for_every_field():
    demo = build_demo(Worker(device="cpu"))
    assert not demo.is_running and demo.analytics_enabled is False
    generate = next(fn for fn in demo.fns.values() if fn.api_name == "generate")
    assert len(generate.inputs) == len(fields(Request)) and generate.concurrency_limit == 1
    defaults = {**vars(Request("")), "heads": []}
    assert [component.value for component in generate.inputs[1:]] == list(defaults.values())[1:]
    assert [fn.api_name for fn in demo.fns.values() if fn.api_visibility == "public"] == ["generate"]
