"""Weights of a checkpoint that its class in diffusers has no place for, such as the gates of VSA-trained models."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn

CONFIG = "config.json"
SUBFOLDERS = ("", "transformer", "transformer_2")  # a model does not know from which one it came
NAMED = 5  # names in one warning


def describe_dropped_weights(transformer: nn.Module) -> str | None:
    """A warning that names what the checkpoint of a transformer has and the transformer has not, None if nothing.

    Only names are read, from files of this machine: an index or the head of a file. What is not found, or cannot be
    read, is not spoken of.
    """
    source = transformer.config.get("_name_or_path")
    try:
        folder = next(_folders(source, type(transformer).__name__), None) if source else None
        names = [] if folder is None else _tensor_names(folder)
    except (OSError, ValueError, SafetensorError):
        return None
    expected = getattr(transformer, "_keys_to_ignore_on_load_unexpected", None) or []
    dropped = [name for name in names if not any(re.search(known, name) for known in expected)]
    dropped = [name for name in dropped if not _has(transformer, name)]
    if not dropped:
        return None
    groups = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in dropped})
    more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
    return (
        f"diffusers dropped {len(dropped)} weights of {source}, for which {type(transformer).__name__} has no place: "
        f"{', '.join(groups[:NAMED])}{more}. The model computes something else than what was trained, with sparse "
        "attention and without"
    )


def _folders(source: str, cls: str) -> Iterator[Path]:
    """Where a model of that class may have been loaded from: a folder, or what the Hub's cache has of a repository."""
    for subfolder in SUBFOLDERS:
        file = Path(source, subfolder, CONFIG)
        if not Path(source).is_dir():
            cached = try_to_load_from_cache(str(source), f"{subfolder}/{CONFIG}".lstrip("/"))
            file = Path(cached) if isinstance(cached, str) else file
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("_class_name") == cls:
            yield file.parent


def _tensor_names(folder: Path) -> list[str]:
    for index in folder.glob("*.safetensors.index*.json"):
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    return []


def _has(module: nn.Module, name: str) -> bool:
    """By attributes, not by `state_dict`: under LoRA and quantisation the old names still lead to the weights."""
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True
