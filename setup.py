"""Packaging: kernels/ and pipelines/ lie at the top level and are installed as parts of diffattn."""

from pathlib import Path

from setuptools import setup

EXTRAS = {
    "xformers": ["xformers"],
    "metrics": ["torchmetrics"],
    "viz": ["matplotlib"],
    "demo": ["gradio>=6"],
    "train": ["peft"],
    "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "setuptools>=77"],
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
        "diffattn",
        "diffattn.assets",
        "diffattn.cli",
        "diffattn.guidance",
        "diffattn.hunting",
        "diffattn.kernels",
        "diffattn.methods",
        "diffattn.models",
        "diffattn.pipelines",
    ],
    package_dir={"diffattn.kernels": "kernels", "diffattn.pipelines": "pipelines"},
    package_data={"diffattn": ["py.typed"], "diffattn.assets": ["tiny_wan/*", "tiny_wan/*/*"]},
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.42",
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
