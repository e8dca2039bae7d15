"""What all method configurations share: making plans, the registry of methods, and the file that keeps one."""

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
    """The default of an option that other options replace. Its type tells it from the same number given by a user."""


@dataclass(frozen=True)
class AttentionConfig:
    """Base class of the method configurations: a frozen dataclass of JSON values that makes plans.

    A subclass sets the class variables `method` (its name in the registry), `dynamic` (whether its plans depend on
    query and key), `wants_value` (whether they depend on the value too), `plans_references` (whether it plans the
    grids of `TokenGrid.references`, which are exact otherwise), `density_by_head` (whether heads with other densities
    have the same rows, tiles and pools) and `published` (the settings of its paper), and implements `_plan`.
    """

    method: ClassVar[str]
    dynamic: ClassVar[bool] = False
    wants_value: ClassVar[bool] = False
    plans_references: ClassVar[bool] = False
    density_by_head: ClassVar[bool] = True
    published: ClassVar[dict[str, tuple[dict, Schedule]]] = {}  # model name to options and schedule

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
        value: Tensor | None = None,
        layer: int = 0,
        step: int | None = None,
        steps: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Plan:
        """Decide which query-key products to compute.

        The plan does not depend on PyTorch's ambient modes: inference mode, autocast, gradients, and the default dtype
        and device.

        Args:
            grid ([`TokenGrid`]): where the S tokens sit.
            query, key (`torch.Tensor`, *optional*): `(B, S, H, D)` and `(B, S, Hkv, D)`, floating point, after norm
                and RoPE. A dynamic method needs both.
            value (`torch.Tensor`, *optional*): `(B, S, Hkv, D)`, for methods with `wants_value`.
            layer (`int`, *optional*, defaults to 0): number of the self-attention layer.
            step, steps (`int`, *optional*): number of the denoising step, from 0, and how many the run has; None
                where that is not known.
            device (`torch.device`, *optional*, defaults to `"cpu"`): device of the plan where no query is given.

        Raises:
            ValueError: the method is dynamic, and query or key is missing; the grid has references, and the method
                does not plan them.
        """
        if grid.references and not self.plans_references:
            raise ValueError(
                f"{self.method!r} plans one grid: count the tokens of references {grid.references} as text, which is "
                "exact"
            )
        if self.dynamic and (query is None or key is None):
            raise ValueError(f"plans of {self.method!r} depend on query and key: give both")
        device = torch.device(device) if query is None else query.device
        if self.dynamic and not len(query):  # an empty batch: any plan fits it
            query, key, value = (x if x is None else x.new_zeros(1, *x.shape[1:]) for x in (query, key, value))
        asked = {"query": query, "key": key, "value": value if self.wants_value else None}
        with plain_modes(device) if self.dynamic else plain_cpu():
            return self._plan(grid=grid, **asked, layer=layer, step=step, steps=steps).to(device)

    def _plan(
        self,
        *,
        grid: TokenGrid,
        query: Tensor | None,
        key: Tensor | None,
        value: Tensor | None,
        layer: int,
        step: int | None,
        steps: int | None,
    ) -> Plan:
        """The plan, on the device of `query`; a static method makes it on the CPU, and `plan` moves it.

        A method names the arguments it needs and takes the others as `**_`, since more may be added.
        """
        raise NotImplementedError

    def _choose_one(self, *names: str) -> None:
        """Keep the one of these options that is given, or the [`Default`] among them; raise if several are given."""
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
        """The published settings for a model, such as `"wan2.1-14b"`; `paper_schedule` gives the schedule for them.

        Raises:
            ValueError: the name is unknown; the message lists the known names.
        """
        return cls(**cls._published(name)[0])

    @classmethod
    def paper_schedule(cls, name: str) -> Schedule:
        """The published dense steps and layers that go with `from_paper`."""
        return cls._published(name)[1]

    @classmethod
    def _published(cls, name: str) -> tuple[dict, Schedule]:
        if name not in cls.published:
            known = ", ".join(cls.published) or "none"
            raise ValueError(f"no published {cls.method} settings for {name!r}, there are: {known}")
        return cls.published[name]

    def to_dict(self) -> dict:
        """The fields and the method's name, ready for JSON."""
        return {"method": self.method, **asdict(self)}

    def describe(self) -> str:
        """One line of text: the method and its options."""
        options = {name: value for name, value in self.to_dict().items() if name != "method" and value is not None}
        return f"{self.method} {json.dumps(options)}"

    @classmethod
    def from_dict(cls, values: dict) -> AttentionConfig:
        """The configuration that `to_dict` wrote, of any method."""
        values = dict(values)
        return _from_file(values.pop("method", getattr(cls, "method", None)), values)

    def save_pretrained(self, folder: str | os.PathLike, schedule: Schedule | None = None) -> None:
        """Write `diffattn_config.json` into a folder, for instance that of a saved model.

        Args:
            folder (`str` or `os.PathLike`): is created if it does not exist.
            schedule ([`Schedule`], *optional*): dense steps and layers to save with the method.
        """
        values = self.to_dict() | ({} if schedule is None else {"schedule": schedule.to_dict()})
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def from_pretrained(source: str | os.PathLike, **hub: str) -> AttentionConfig:
        """The configuration that `save_pretrained` wrote, of any method. [`enable`] accepts the source directly.

        Args:
            source (`str` or `os.PathLike`): a folder, or the id of a repository on the Hub.
            hub: arguments of `huggingface_hub.hf_hub_download`, such as `subfolder`, `revision` or `token`.

        Raises:
            OSError: the source has no `diffattn_config.json`.
            ValueError: the file holds an unknown method, option or value.
        """
        return load_settings(source, **hub)[0]


@contextmanager
def plain_modes(device: torch.device) -> Iterator[None]:
    """Without inference mode, gradients and autocast, which would change a plan or forbid its reuse in training."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def plain_cpu() -> Iterator[None]:
    """[`plain_modes`] with the CPU as default device, for tensors that are made once and cached or moved."""
    with torch.device("cpu") as cpu, plain_modes(cpu):
        yield


METHODS: dict[str, type[AttentionConfig]] = {}
SAVED: dict[str, type[AttentionConfig]] = {}  # found in files only, as no name can ask for them


def register(cls: type[AttentionConfig]) -> type[AttentionConfig]:
    """Class decorator that adds a method to the registry, by its name."""
    METHODS[cls.method] = cls
    return cls


def register_saved(cls: type[AttentionConfig]) -> type[AttentionConfig]:
    """Class decorator for a configuration that is loaded from files, and is none of the methods to choose from."""
    SAVED[cls.method] = cls
    return cls


def config(method: str, **options) -> AttentionConfig:
    """The configuration of a method, by its name and options.

    Raises:
        ValueError: the name or an option is unknown, or a value is not allowed.

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


def _from_file(method: Any, options: dict) -> AttentionConfig:
    known = isinstance(method, str) and method in SAVED
    return SAVED[method](**options) if known else config(method, **options)


def check_density(density: float | None) -> None:
    """Raise unless `density` is None or in (0, 1]."""
    number = isinstance(density, (int, float)) and not isinstance(density, bool)
    if density is not None and not (number and 0 < density <= 1):
        raise ValueError(f"density must be above 0 and at most 1, got {density!r}")


def load_settings(source: str | os.PathLike, **hub: str) -> tuple[AttentionConfig, Schedule | None]:
    """The method and the schedule that `save_pretrained` wrote; see [`AttentionConfig.from_pretrained`]."""
    path = _settings_path(source, hub)
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        schedule = values.pop("schedule", None)
        method = _from_file(values.pop("method", None), values)
        return method, None if schedule is None else Schedule(**schedule)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {SETTINGS_FILE} that can be used: {error}") from error


def _settings_path(source: str | os.PathLike, hub: dict) -> Path:
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
