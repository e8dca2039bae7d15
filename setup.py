"""Packaging: kernels/ and pipelines/ lie at the top level and are installed as parts of diffattn."""

from pathlib import Path

from setuptools import find_packages, setup

DEMO = ["gradio>=6", "matplotlib", "torchmetrics"]
DOCS = ["mkdocs<2", "mkdocs-material", "mkdocstrings-python", "nbclient", "ipykernel"]
EXTRAS = {
    "xformers": ["xformers"],
    "metrics": ["torchmetrics"],
    "viz": ["matplotlib"],
    "demo": DEMO,
    "docs": DOCS,
    "train": ["peft"],
    "dev": [
        *DEMO,
        *DOCS,
        *("pytest", "pytest-xdist", "hypothesis", "ruff", "setuptools>=77", "peft", "torchao", "scikit-image"),
    ],
}

setup(
    name="diffattn",
    version="0.1.0",
    description="Sparse attention and head-level guidance for Hugging Face diffusers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["diffattn", "diffattn.*"]),
        *("diffattn.kernels", "diffattn.pipelines"),
        *(f"diffattn.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"diffattn.kernels": "kernels", "diffattn.pipelines": "pipelines"},
    package_data={"diffattn": ["py.typed"], "diffattn.assets": ["tiny_wan/*", "tiny_wan/*/*"]},
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.37",
        "transformers",
        "accelerate",
        "safetensors",
        "numpy",
        "imageio",
        "imageio-ffmpeg",
        "typer",
        "triton>=3.6; platform_system == 'Linux'",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["diffattn = diffattn.cli:main"]},
)
