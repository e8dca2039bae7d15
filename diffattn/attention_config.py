"""What every method's configuration has in common, and finding one by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .grid import TokenGrid
from .kernels.handles import handle_of
from .kernels.plan.plan import Plan
from .schedule import Schedule

SETTINGS_FILE = "diffattn_config.json"


class Default(float):
    """The default of an option that others replace: told by its type from the same number given by the user."""


@dataclass(frozen=True)
class AttentionConfig:
    """Base of the method configurations: a frozen dataclass of JSON values that makes plans.

    A subclass sets `method`, the name it is found by; `dynamic`, whether its plans depend on query and key; and
    `published`, the settings of its paper. It implements `_plan`.
    """

    method: ClassVar[str]
    dynamic: ClassVar[bool] = False
    published: ClassVar[dict[str, tuple[dict, Schedule]]] = {}  # options and schedule by the name of a model

    def __new__(cls, *args: Any, **kwargs: Any) -> AttentionConfig:
        self = super().__new__(cls)
        object.__setattr__(self, "handle", handle_of(self))  # by which operators in compiled graphs find it
        return self

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):  # JSON has no tuples
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))

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

        The plan is the same whatever modes of PyTorch surround the call: inference, autocast, gradients, and the
        default dtype and device.

        Args:
            grid ([`TokenGrid`]): where the S tokens sit.
            query, key (`torch.Tensor`, *optional*): `(B, S, H, D)` after norm and RoPE; needed where `dynamic`.
            layer (`int`, *optional*, defaults to 0): number of the self-attention layer.
            device (`torch.device`, *optional*): where the plan of a static method is to be; `query.device` otherwise.

        Raises:
            ValueError: the method depends on query and key, and they are not given.
        """
        if self.dynamic and (query is None or key is None):
            raise ValueError(f"plans of {self.method!r} depend on query and key: give both")
        device = torch.device(device) if query is None else query.device
        if self.dynamic and not len(query):  # an empty batch has nothing to choose by, and any plan serves it
            query, key = (tensor.new_zeros(1, *tensor.shape[1:]) for tensor in (query, key))
        with plain_modes(device) if self.dynamic else plain_cpu():
            return self._plan(grid=grid, query=query, key=key, layer=layer).to(device)

    def _plan(self, *, grid: TokenGrid, query: Tensor | None, key: Tensor | None, layer: int) -> Plan:
        """What `plan` returns: on the device of the query, or on the CPU where the method is static.

        A method names the arguments it needs and takes the others as `**_`: there may be more of them later.
        """
        raise NotImplementedError

    def _choose_one(self, *names: str) -> None:
        """Raise unless one of some options that exclude each other is given; none is as good as the [`Default`]."""
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            given = [name for name in given if not isinstance(getattr(self, name), Default)]
        if len(given) > 1:
            values = " and ".join(f"{name}={getattr(self, name)!r}" for name in given)
            raise ValueError(f"give one of {', '.join(names)}: got {values}")
        for name in names:
            default = getattr(type(self), name)
            if name not in given:
                object.__setattr__(self, name, default if isinstance(default, Default) and not given else None)

    @classmethod
    def from_paper(cls, name: str) -> AttentionConfig:
        """The published settings of a model, to go with the dense steps and layers of `paper_schedule`.

        Raises:
            ValueError: there are no settings of that name; the message lists those there are.
        """
        return cls(**cls._published(name)[0])

    @classmethod
    def paper_schedule(cls, name: str) -> Schedule:
        """The dense steps and layers published with the settings of `from_paper`."""
        return cls._published(name)[1]

    @classmethod
    def _published(cls, name: str) -> tuple[dict, Schedule]:
        if name not in cls.published:
            known = ", ".join(cls.published) or "none"
            raise ValueError(f"no published {cls.method} settings for {name!r}, there are: {known}")
        return cls.published[name]

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


@contextmanager
def plain_modes(device: torch.device) -> Iterator[None]:
    """No inference mode, gradients or autocast: they would mark or change tensors that are kept for other calls."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def plain_cpu() -> Iterator[None]:
    """`plain_modes` with the CPU as the default device, for what is made there whatever the device of the query."""
    with torch.device("cpu") as cpu, plain_modes(cpu):
        yield


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
    path = Path(folder) / SETTINGS_FILE
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
        raise ValueError(f"{path} is no {SETTINGS_FILE} that can be used: {error}") from error


def _settings_file(source: str | os.PathLike, hub: dict) -> Path:
    if isinstance(source, os.PathLike) or Path(source).is_dir():
        path = Path(source, hub.get("subfolder", ""), SETTINGS_FILE)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path.parent} holds no {SETTINGS_FILE}: write one with config.save_pretrained(folder)"
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(str(source), SETTINGS_FILE, **hub))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise OSError(
            f"{source} is no folder, and {SETTINGS_FILE} could not be loaded from the Hub: {error}"
        ) from error
