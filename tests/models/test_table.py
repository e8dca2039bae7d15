import re
from pathlib import Path

import diffusers
import pytest
from diffusers.models import transformers
from packaging.version import Version
from typer.testing import CliRunner

from diffattn.cli import app
from diffattn.models import adapter_named, supported_models
from diffattn.models.adapter import find_adapter_of
from diffattn.models.not_supported import NOT_SUPPORTED
from diffattn.models.table import END, START, methods_for, support_table, with_block, with_table
from docs.tools import composition

from .builders import CASES, case
from .native_builders import NATIVE
from .pipeline_builders import PIPELINES

ROOT = Path(__file__).resolve().parents[2]
# WanPipeline and its kin have tests of their own, tests/test_wan.py
IN_PIPELINES = {"WanTransformer3DModel", *(case(pipeline.transformer).model for pipeline in PIPELINES)}


@pytest.mark.parametrize("name", ["README.md", "docs/models.md"])
def test_the_page_holds_the_table_of_now(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert with_table(text) == text, START
    if name == "README.md":
        assert f"<summary>{len(supported_models())} transformer classes" in text


def test_every_test_that_proves_a_composition_exists():
    text = (ROOT / "docs/composition.md").read_text(encoding="utf-8").split(composition.START)[0]
    rows = [row for row in text.splitlines() if row.startswith("| ")][1:]
    named = [re.fullmatch(r".*\| `(tests/.+\.py)::(test_\w+)` \|", row) for row in rows]
    assert len(rows) > 25 and all(named)
    for file, test in (found.groups() for found in named):
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)


def test_the_pairs_on_the_page_are_those_that_the_tests_prove():
    text = (ROOT / "docs/composition.md").read_text(encoding="utf-8")
    assert with_block(text, composition.START, composition.END, composition.pairs()) == text, composition.START


def test_every_reason_on_the_page_is_one_that_the_code_gives():
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8").split("| reason | when |")[1]
    reasons = [
        reason
        for row in text.splitlines()[2:]
        if row[:1] == "|"
        for reason in re.findall("`(.+?)`", row.split("|")[1])
    ]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "diffattn").rglob("*.py"))
    assert len(reasons) > 15
    assert [reason for reason in reasons if reason not in sources] == []


def test_a_row_for_every_class():
    rows = support_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == supported_models()


def test_every_transformer_that_diffusers_exports_is_supported_or_listed_with_the_reason_why_not():
    exported = {
        name for name, made in vars(transformers).items() if isinstance(made, type) and hasattr(diffusers, name)
    }
    supported = {name for name in exported if find_adapter_of(getattr(diffusers, name)) is not None}
    assert len(exported) > 50 and exported - supported - NOT_SUPPORTED.keys() == set()
    assert not NOT_SUPPORTED.keys() & supported
    if Version(diffusers.__version__) >= Version("0.42"):
        assert NOT_SUPPORTED.keys() <= exported


def test_it_says_what_is_tested():
    for name in supported_models():
        labels = {made.label.lstrip("-") for made in (*CASES, *NATIVE) if made.model == name} - {""}
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
