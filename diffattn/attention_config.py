"""What every method's configuration has in common, and finding one by name."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .grid import TokenGrid
from .kernels.handles import handle_of
from .kernels.plan.plan import Plan
from .schedule import Schedule

FILE = "diffattn_config.json"


@dataclass(frozen=True)
class AttentionConfig:
    """Base of the method configurations: a frozen dataclass of JSON values that makes plans.

    A subclass sets `method`, the name it is found by, and `dynamic`, whether its plans depend on query and key.
    """

    method: ClassVar[str]
    dynamic: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> AttentionConfig:
        self = super().__new__(cls)
        object.__setattr__(self, "handle", handle_of(self))  # by which operators in compiled graphs find it
        return self

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "handle"}

    def plan(
        self,
        grid: TokenGrid,
        query: Tensor | None = None,
        key: Tensor | None = None,
        *,
        layer: int = 0,
        device: torch.device | str = "cpu",
    ) -> Plan:
        """Decide what to compute.

        Args:
            grid ([`TokenGrid`]): where the S tokens sit.
            query, key (`torch.Tensor`, *optional*): `(B, S, H, D)` after norm and RoPE; needed where `dynamic`.
            layer (`int`, *optional*, defaults to 0): number of the self-attention layer.
            device (`torch.device`, *optional*): where the plan of a static method is made; `query.device` otherwise.
        """
        raise NotImplementedError

    def to_dict(self) -> dict:
        """The fields and the method's name, JSON-ready."""
        return {"method": self.method, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> AttentionConfig:
        """The configuration that `to_dict` wrote, of any method."""
        values = dict(values)
        return config(values.pop("method", getattr(cls, "method", None)), **values)

    def save_pretrained(self, folder: str | os.PathLike, schedule: Schedule | None = None) -> None:
        """Write `diffattn_config.json`, beside a saved model for instance.

        Args:
            folder (`str` or `os.PathLike`): made where it is missing.
            schedule ([`Schedule`], *optional*): dense steps and layers to save with the method.
        """
        save_settings(folder, self, schedule)

    @staticmethod
    def from_pretrained(source: str | os.PathLike, **hub: str) -> AttentionConfig:
        """The configuration that `save_pretrained` wrote, of any method; [`enable`] takes the source as well.

        Args:
            source (`str` or `os.PathLike`): a folder, or the id of a repository on the Hub.
            hub: `subfolder`, `revision`, `token`, `cache_dir` and the like, see `huggingface_hub.hf_hub_download`.

        Raises:
            OSError: there is no such file.
            ValueError: the file holds an unknown method, option or value.
        """
        return load_settings(source, **hub)[0]


METHODS: dict[str, type[AttentionConfig]] = {}


def register(cls: type[AttentionConfig]) -> type[AttentionConfig]:
    """Class decorator that makes a method known by its name."""
    METHODS[cls.method] = cls
    return cls


def config(method: str, **options) -> AttentionConfig:
    """A method's configuration by name, as the command line and JSON files give it.

    >>> config("radial", decay=0.5).decay
    0.5
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"unknown method {method!r}, known are: {', '.join(sorted(METHODS))}")
    known = [field.name for field in fields(METHODS[method])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{method} has no option {', '.join(unknown)}; its options are: {', '.join(known)}")
    return METHODS[method](**options)


def check_density(density: float | None) -> None:
    """Raise unless `density` is None or in (0, 1]."""
    number = isinstance(density, (int, float)) and not isinstance(density, bool)
    if density is not None and not (number and 0 < density <= 1):
        raise ValueError(f"density must be above 0 and at most 1, got {density!r}")


def save_settings(folder: str | os.PathLike, method: AttentionConfig, schedule: Schedule | None = None) -> Path:
    """Write the file into `folder`, which is made where it is missing."""
    values = method.to_dict() | ({} if schedule is None else {"schedule": schedule.to_dict()})
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return path


def load_settings(source: str | os.PathLike, **hub: str) -> tuple[AttentionConfig, Schedule | None]:
    """The method and the schedule of a folder or a repository, see [`AttentionConfig.from_pretrained`]."""
    path = _settings_file(source, hub)
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        schedule = values.pop("schedule", None)
        method = config(values.pop("method", None), **values)
        return method, None if schedule is None else Schedule(**schedule)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {FILE} that can be used: {error}") from error


def _settings_file(source: str | os.PathLike, hub: dict) -> Path:
    if isinstance(source, os.PathLike) or Path(source).is_dir():
        path = Path(source, hub.get("subfolder", ""), FILE)
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} holds no {FILE}: write one with config.save_pretrained(folder)")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(str(source), FILE, **hub))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise OSError(f"{source} is no folder, and {FILE} could not be loaded from the Hub: {error}") from error
