"""`diffattn_config.json`: a method and its schedule in the folder of a model, or on the Hub beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .config import AttentionConfig, config
from .schedule import Schedule

FILE = "diffattn_config.json"


def save_settings(folder: str | os.PathLike, method: AttentionConfig, schedule: Schedule | None = None) -> Path:
    """Write the file into `folder`, which is made where it is missing."""
    values = method.to_dict() | ({} if schedule is None else {"schedule": schedule.to_dict()})
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return path


def load_settings(source: str | os.PathLike, **hub: str) -> tuple[AttentionConfig, Schedule | None]:
    """The method and the schedule of a folder or a repository, see [`AttentionConfig.from_pretrained`]."""
    path = _find(source, hub)
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        schedule = values.pop("schedule", None)
        method = config(values.pop("method", None), **values)
        return method, None if schedule is None else Schedule(**schedule)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {FILE} that can be used: {error}") from error


def _find(source: str | os.PathLike, hub: dict) -> Path:
    if isinstance(source, os.PathLike) or Path(source).is_dir():
        path = Path(source, hub.get("subfolder", ""), FILE)
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} holds no {FILE}: write one with config.save_pretrained(folder)")
        return path
    try:
        return Path(hf_hub_download(str(source), FILE, **hub))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise OSError(f"{source} is no folder, and {FILE} was not to be had from the Hub: {error}") from error
