"""Installs into a clean environment, from a clean copy of the sources, both ways."""

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import diffattn

ROOT = Path(__file__).parents[1]
# Ours first: what diffusers imports after that may not be our `kernels`.
IMPORTS = """
import diffattn, diffattn.kernels.attend
print(diffattn.__file__, diffattn.kernels.attend.__file__, diffattn.tiny_wan(), sep="\\n")
"""
DIFFUSERS = """
import diffattn.pipelines.wan_sparse
from diffusers import WanPipeline
from diffusers.utils import is_kernels_available
assert not is_kernels_available()
"""


def test_kernels_and_pipelines_are_no_packages_at_the_root():
    for name in ("kernels", "pipelines"):
        assert not (ROOT / name / "__init__.py").exists(), f"{name} would shadow Hugging Face's package of that name"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in ("diffattn", "kernels", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A clean environment that sees the dependencies of this one, but no diffattn."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin" / "python"


@pytest.fixture(scope="module", params=["regular", "editable"])
def installed(request, python, source) -> tuple[Path, Path]:
    editable = ["-e"] if request.param == "editable" else []
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--force-reinstall"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", *editable, source], check=True)
    return python, source


def run(python: Path, code: str, cwd: Path) -> str:
    done = subprocess.run([python, "-c", code], cwd=cwd, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_everything_imports_from_the_root_and_elsewhere(installed, tmp_path, place):
    python, source = installed
    code, folder = (IMPORTS + DIFFUSERS, source) if place == "root" else (IMPORTS, tmp_path)
    files = run(python, code, folder).split()
    assert all(str(ROOT) not in file for file in files), files
    assert (Path(files[2]) / "model_index.json").is_file()


def test_a_config_pickles_across_processes(installed, tmp_path):
    python, source = installed
    dump = "import diffattn, pickle, sys; sys.stdout.write(pickle.dumps(diffattn.RadialConfig(decay=0.5), 0).decode())"
    text = run(python, dump, tmp_path)
    assert pickle.loads(text.encode()) == diffattn.RadialConfig(decay=0.5)
    (tmp_path / "config.pickle").write_text(text)
    load = f"import pickle; print(pickle.load(open({str(tmp_path / 'config.pickle')!r}, 'rb')).decay)"
    assert run(python, load, source).strip() == "0.5"


def test_import_kernels_from_the_root_is_never_ours(installed):
    python, source = installed
    bare = "import kernels; print(kernels.__file__, hasattr(kernels, 'get_kernel'))"
    assert run(python, bare, source).split() == ["None", "False"]
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    (site / "kernels").mkdir()
    try:
        (site / "kernels" / "__init__.py").write_text("get_kernel = len")
        found = run(python, "import diffattn.kernels.attend\nfrom kernels import get_kernel as g; print(g)", source)
        assert "built-in function len" in found
    finally:
        shutil.rmtree(site / "kernels")
