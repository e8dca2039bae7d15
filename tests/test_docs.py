"""Every command and every Python block of README and docs runs, or at least resolves; the site and notebook build."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import doc_shell
import pytest
from doc_blocks import Block, blocks, check_marker
from doc_python import Namespace

from diffattn.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GUIDES = ("methods.md", "models.md", "guidance.md", "composition.md", "demo.md", "kernels.md", "performance.md")
UNMARKED = {DOCS / page for page in GUIDES}  # whose unmarked blocks are only resolved


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder to run in; methods that a page registers are forgotten afterwards."""
    known = dict(METHODS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    METHODS.clear()
    METHODS.update(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs_or_resolves(page, scratch):
    resolved, namespace = Namespace(), {"__name__": "__main__"}
    for block in blocks(page, ROOT):
        check_marker(block)
        assert block.marker or page in UNMARKED, f"{block}: say above it whether it runs, see tests/doc_blocks.py"
        try:
            check_block(block, resolved)
            if block.runs:
                run_block(block, namespace)
        except BaseException as error:
            raise AssertionError(f"{block}: {type(error).__name__}: {error}") from error


def check_block(block: Block, resolved: Namespace) -> None:
    if not block.shell:
        resolved.check(block.text)
        return
    for words in doc_shell.commands(block.text):
        doc_shell.check(words)


def run_block(block: Block, namespace: dict) -> None:
    if not block.shell:
        exec(compile(block.to_run(ROOT), str(block), "exec"), namespace)
        return
    for words in doc_shell.commands(block.to_run(ROOT)):
        doc_shell.check(words, run=True)


def test_there_is_something_to_check():
    counts = {page.name: len(blocks(page, ROOT)) for page in PAGES}
    assert counts["README.md"] > 2 and counts["index.md"] > 5 and counts["writing-your-own-method.md"] > 3


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("diffattn generate", "Missing argument"),
        ("diffattn generate 'a cat' -o cat.mp4 --sped 3", "No such option"),
        ("diffattn generat 'a cat' -o cat.mp4", "No such command"),
        ("diffattn inspect --frames many", "valid integer"),
        ("python -m diffattn.nothing", "no module diffattn.nothing"),
        ("python -m benchmarks.quality --gird 3 4 5", "unrecognized arguments: --gird"),
        ("python examples/missing.py", "there is no examples/missing.py"),
        ("python examples/text_to_video.py 'a cat' --modle tiny", "unrecognized arguments: --modle"),
        ("python examples/text_to_video.py 'a cat' --offload most", "invalid choice: 'most'"),
        ("accelerate launch --multi_gpuu examples/text_to_video.py 'a cat'", "exit code 2"),
        ("accelerate launch examples/text_to_video.py --promts prompts.txt", "unrecognized arguments: --promts"),
        ("python -m pytest tests/test_missing.py", "there is no tests/test_missing.py"),
        ("python -m diffattn.models --wide", "reads no options"),
        ("make dmeo", "make has no target dmeo"),
        ('pip install "diffattn[vizz]"', "setup.py has no extra vizz"),
        ("rm -rf outputs", "nobody knows how to check"),
    ],
)
def test_a_wrong_command_is_found(text, complaint, capsys):
    with pytest.raises(AssertionError) as error:
        doc_shell.check(*doc_shell.commands(text))
    assert complaint in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("import diffattn\ndiffattn.enabel(pipe)", "diffattn.enabel does not exist"),
        ("import diffattn\ndiffattn.enable(pipe, shedule=None)", "takes no shedule"),
        ("import diffattn\ndiffattn.RadialConfig(densty=0.3)", "takes no densty"),
        ("import diffattn\ndiffattn.RadialConfig.from_papers('x')", "does not exist"),
        ("from diffusers import WanPipelin", "WanPipelin"),
        ("print(video)", "video is not defined"),
        ("video = (", "never closed"),
        (">>> import diffattn\n>>> diffattn.off()\nTrue", "diffattn.off does not exist"),
    ],
)
def test_a_wrong_block_is_found(text, complaint):
    with pytest.raises((AssertionError, AttributeError, ImportError, SyntaxError), match=complaint):
        Namespace().check(text)


def test_a_stale_marker_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- ci: run; steps=3 -> steps=1 -->\n```python\nsteps = 2\n```\n\n<!-- ci: rnu -->\n```sh\nls\n```\n"
    )
    stale, unknown = blocks(page, tmp_path)
    assert (stale.line, unknown.line, unknown.text) == (2, 7, "ls\n")
    with pytest.raises(AssertionError, match="which the block does not hold"):
        stale.to_run(tmp_path)
    with pytest.raises(AssertionError, match="unknown marker 'rnu'"):
        check_marker(unknown)


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert targets and [target for target in targets if not (ROOT / target).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='the site needs pip install "diffattn[docs]"')
    source = tmp_path / "source"
    for name in ("docs", "diffattn", "kernels", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "mkdocs.yml", source)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "pipelines" / "index.html").read_text()
    assert 'id="diffattn.integration.apply.enable"' in reference and "[`" not in reference


def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason='the notebook needs pip install "diffattn[docs]"')
    nbclient = pytest.importorskip("nbclient", reason='the notebook needs pip install "diffattn[docs]"')
    notebook = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    sizes = next(cell for cell in notebook.cells if "steps, frames = 20, 33" in cell.source)
    sizes.source = sizes.source.replace("steps, frames = 20, 33", "steps, frames = 1, 5")
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without its outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, startup_timeout=300, resources=resources).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "PSNR" in printed and "density" in printed
