from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffattn.cli import app
from diffattn.models import adapter_named, supported_models
from diffattn.models.table import END, START, methods_for, support_table, with_table

from .builders import CASES, case
from .pipeline_builders import PIPELINES

README = Path(__file__).resolve().parents[2] / "README.md"
# WanPipeline and its kin have tests of their own, tests/test_wan.py
IN_PIPELINES = {"WanTransformer3DModel", *(case(pipeline.transformer).model for pipeline in PIPELINES)}


def test_the_readme_holds_the_table_of_now():
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "python -m diffattn.models README.md"
    assert f"<summary>{len(supported_models())} transformer classes" in text


def test_a_row_for_every_class():
    rows = support_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == supported_models()


def test_it_says_what_is_tested():
    for name in supported_models():
        labels = {made.label.lstrip("-") for made in CASES if made.model == name} - {""}
        assert set(adapter_named(name).tested) == labels | ({"pipeline"} if name in IN_PIPELINES else set()), name


def test_methods_that_need_frames_are_not_offered_for_images():
    assert "radial" not in methods_for(adapter_named("FluxTransformer2DModel"))
    assert {"auto", "pyramid", "neighborhood"} <= set(methods_for(adapter_named("FluxTransformer2DModel")))
    assert "radial" in methods_for(adapter_named("WanTransformer3DModel"))


def test_the_command_prints_it():
    result = CliRunner().invoke(app, ["env", "--models"])
    assert result.exit_code == 0 and result.output == support_table() + "\n"


@pytest.mark.parametrize("text", ["no marks", START, f"{END} {START}"])
def test_a_file_without_marks_is_named(text):
    with pytest.raises(ValueError, match="models: python -m"):
        with_table(text)
