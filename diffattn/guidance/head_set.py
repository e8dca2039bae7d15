"""A set of heads and how to guide with them: the result of a search, or a preset, kept as a small JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .guidance_config import GuidanceConfig
from .model import ModelMap
from .selection import Selection, make_selection
from .strengths import check_strength

FORMAT, VERSION = "diffattn-headset", 1
FILE = "headset.json"


@dataclass(frozen=True)
class Head:
    """One head: qualified name of its attention module, number, and u."""

    layer: str
    head: int
    strength: float = 1.0

    def check(self, model: ModelMap) -> None:
        """Raise a ValueError unless `model` has this head and u is from 0 to 1."""
        check_strength(self.strength)
        if self.layer not in model.layers:
            raise ValueError(f"no layer {self.layer!r}: {model.describe()}")
        integer = isinstance(self.head, int) and not isinstance(self.head, bool)
        if not integer or not 0 <= self.head < model.layers[self.layer]:
            raise ValueError(f"no head {self.head!r} in {self.layer}: {model.describe()}")


@dataclass(frozen=True)
class HeadSet:
    """Heads of a model and the settings to guide with them. `heads[:9]` has the first nine in the order of selection.

    Args:
        heads (`tuple[Head, ...]`): in the order in which they were selected.
        skip_blocks (`tuple[str, ...]`, *optional*): blocks to skip.
        model (`dict`, *optional*): class of the model and number of heads of every layer; other models are refused.
        guidance ([`GuidanceConfig`], *optional*): the settings.
        search (`dict`, *optional*): the origin of the heads: objective, scores, prompts, a note.

    Example:

    ```python
    >>> heads = HeadSet.load("me/golden-hour-heads")
    >>> diffattn.guide(pipe, heads[:6], strength=0.5)
    ```
    """

    heads: tuple[Head, ...] = ()
    skip_blocks: tuple[str, ...] = ()
    model: dict | None = None
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    search: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self):
        return iter(self.heads)

    def __getitem__(self, index: int | slice) -> Head | HeadSet:
        if isinstance(index, slice):
            return replace(self, heads=self.heads[index])
        return self.heads[index]

    def check(self, model: ModelMap) -> None:
        """Raise a ValueError unless these heads and blocks are those of `model`."""
        if self.model is not None and self.model != describe_model(model):
            own = ModelMap(self.model["class"], self.model["layers"], (), ())
            raise ValueError(f"this head set is for another model: {own.describe()}, but {model.describe()}")
        for head in self.heads:
            head.check(model)
        for block in self.skip_blocks:
            if block not in model.blocks + model.branches:
                raise ValueError(f"no block {block!r}: {model.describe()}")

    def select(self, model: ModelMap, guidance: GuidanceConfig) -> Selection:
        """The heads as strengths by layer."""
        values: dict[str, torch.Tensor] = {}
        for head in self.heads:
            layer = values.setdefault(head.layer, torch.zeros(1, model.layers[head.layer]))
            layer[0, head.head] = head.strength
        return make_selection(model, values, self.skip_blocks, guidance.target, guidance.rows)

    def to_dict(self) -> dict:
        """JSON-ready values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "heads": [{"layer": h.layer, "head": h.head, "strength": h.strength} for h in self.heads],
            "skip_blocks": list(self.skip_blocks),
            "guidance": self.guidance.to_dict(),
            "search": self.search,
        }

    @classmethod
    def from_dict(cls, values: dict) -> HeadSet:
        """From what `to_dict` returned."""
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            found = f"{values.get('format')!r} version {values.get('version')!r}"
            raise ValueError(f"not a head set: expected {FORMAT!r} version {VERSION}, found {found}")
        heads = tuple(Head(**head) for head in values["heads"])
        guidance = GuidanceConfig.from_dict(values.get("guidance") or {})
        skip = tuple(values.get("skip_blocks") or ())
        return cls(heads, skip, values.get("model"), guidance, values.get("search") or {})

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write JSON to `path`, or to `headset.json` in it if it is a directory or has no suffix."""
        path = Path(path)
        path = path if path.suffix else path / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path, **download: Any) -> HeadSet:
        """Read JSON from a file, a directory, or a repository of the Hub (`revision=`, `token=`)."""
        path = Path(source)
        if path.is_dir():
            path = path / FILE
        elif not path.is_file():
            if path.suffix == ".json" or len(path.parts) != 2 or path.is_absolute():
                raise FileNotFoundError(f"no head set at {source}")
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(str(source), FILE, **download))
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, commit_message: str | None = None
    ) -> str:
        """Upload the JSON to a model repository of the Hub, created if it does not exist; returns its address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        data = self.to_json().encode()
        message = commit_message or f"Upload {len(self)} heads"
        api.upload_file(path_or_fileobj=data, path_in_repo=FILE, repo_id=repo.repo_id, commit_message=message)
        return str(repo)


def describe_model(model: ModelMap) -> dict:
    """The description of the model that a head set keeps."""
    return {"class": model.model, "layers": dict(model.layers)}
