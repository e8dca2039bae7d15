"""Sets of heads: what a search finds, what a preset is, what travels as a small JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .config import GuidanceConfig
from .model import ModelMap
from .selection import Selection
from .strengths import Strengths

FORMAT, VERSION = "diffattn-headset", 1
FILE = "headset.json"


@dataclass(frozen=True)
class Head:
    """One head: qualified name of its attention module, number, and u."""

    layer: str
    head: int
    strength: float = 1.0


@dataclass(frozen=True)
class HeadSet:
    """Heads of a model, and how to guide with them. `heads[:9]` are the first nine in the order of selection.

    Args:
        heads (`tuple[Head, ...]`): in the order in which they were selected.
        skip_blocks (`tuple[str, ...]`, *optional*): blocks to skip.
        model (`dict`, *optional*): class and number of heads of every layer, to be compared with when it is used.
        guidance ([`GuidanceConfig`], *optional*): the settings that go with it.
        search (`dict`, *optional*): where it comes from: objective, scores, prompts, a note.

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
            _check_head(model, head)
        for block in self.skip_blocks:
            if block not in model.blocks + model.branches:
                raise ValueError(f"no block {block!r}: {model.describe()}")

    def select(self, model: ModelMap, guidance: GuidanceConfig) -> Selection:
        """The heads as strengths by layer."""
        values: dict[str, torch.Tensor] = {}
        for head in self.heads:
            layer = values.setdefault(head.layer, torch.zeros(1, model.layers[head.layer]))
            layer[0, head.head] = head.strength
        return make_selection(model, values, self.skip_blocks, guidance)

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
        """What `to_dict` gave."""
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
        """Write JSON: to `path`, or to `headset.json` in it where it is a directory or has no suffix."""
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
        """Upload the JSON to a model repository of the Hub, which is made if need be; gives its address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        data = self.to_json().encode()
        message = commit_message or f"Upload {len(self)} heads"
        api.upload_file(path_or_fileobj=data, path_in_repo=FILE, repo_id=repo.repo_id, commit_message=message)
        return str(repo)


def describe_model(model: ModelMap) -> dict:
    """What a head set keeps of the model it was made for."""
    return {"class": model.model, "layers": dict(model.layers)}


def make_selection(
    model: ModelMap, values: dict[str, torch.Tensor], skip_blocks: Iterable[str], guidance: GuidanceConfig
) -> Selection:
    """From u `(B|1, H)` by layer, in the order of the model's layers; layers that are all 0 are left out."""
    made = {layer: Strengths(values[layer]) for layer in model.layers if layer in values}
    kept = {layer: strengths for layer, strengths in made.items() if strengths}
    return Selection(kept, tuple(skip_blocks), guidance.target, guidance.rows)


def resolve_heads(
    model: ModelMap,
    heads: Any = None,
    *,
    layers: Iterable[int | str] | None = None,
    skip_blocks: Iterable[int | str] | None = None,
    strength: float | None = None,
    guidance: GuidanceConfig | None = None,
) -> HeadSet:
    """A head set of `model` from anything a user may write.

    Args:
        model ([`ModelMap`]): of the transformer.
        heads (`HeadSet`, `dict` or `list`, *optional*): a set; `{head: strength}`; or a list of heads, each
            `(layer, head)` with the layer by number or qualified name, `"layer:head"`, or a [`Head`].
        layers (`list`, *optional*): layers of which all heads are meant.
        skip_blocks (`list`, *optional*): blocks to skip, by number or qualified name.
        strength (`float`, *optional*): u of the heads; multiplies what they have of their own.
        guidance ([`GuidanceConfig`], *optional*): settings of the set.
    """
    if isinstance(heads, HeadSet):
        heads.check(model)
        base = heads
    else:
        base = HeadSet(heads=tuple(_read_heads(model, heads)))
    found, skipped = list(base.heads), list(base.skip_blocks)
    for layer in [layers] if isinstance(layers, (int, str)) else layers or ():
        name = _layer(model, layer)
        found += [Head(name, head) for head in range(model.layers[name])]
    for block in [skip_blocks] if isinstance(skip_blocks, (int, str)) else skip_blocks or ():
        skipped.append(_block(model, block))
    if strength is not None:
        check_strength(strength)
        found = [replace(head, strength=head.strength * strength) for head in found]
    unique = {(head.layer, head.head): head for head in found}
    made = replace(
        base,
        heads=tuple(unique.values()),
        skip_blocks=tuple(dict.fromkeys(skipped)),
        model=describe_model(model),
        guidance=guidance or base.guidance,
    )
    made.check(model)
    return made


def check_strength(strength: Any) -> None:
    """Raise unless u is a number from 0 to 1."""
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not number or not 0 <= strength <= 1:
        raise ValueError(f"strength must be a number from 0 (unperturbed) to 1, got {strength!r}")


def _read_heads(model: ModelMap, heads: Any) -> list[Head]:
    if heads is None:
        return []
    if isinstance(heads, dict):
        return [_head(model, head, own) for head, own in heads.items()]
    if isinstance(heads, (str, int)) or not isinstance(heads, Iterable):
        raise TypeError(f"heads must be a HeadSet, a dict or a list of (layer, head), got {heads!r}")
    return [_head(model, head) for head in heads]


def _head(model: ModelMap, head: Any, strength: Any = 1.0) -> Head:
    if isinstance(head, Head):
        made = head
    elif isinstance(head, dict):
        made = Head(**head)
    elif isinstance(head, str) and head.count(":") == 1:
        layer, number = head.split(":")
        made = Head(_layer(model, layer), int(number) if number.isdigit() else number, strength)
    elif isinstance(head, (tuple, list)) and len(head) in (2, 3):
        made = Head(_layer(model, head[0]), head[1], head[2] if len(head) == 3 else strength)
    else:
        raise TypeError(f"a head is (layer, head) or 'layer:head', got {head!r}")
    _check_head(model, made)
    return made


def _check_head(model: ModelMap, head: Head) -> None:
    check_strength(head.strength)
    if head.layer not in model.layers:
        raise ValueError(f"no layer {head.layer!r}: {model.describe()}")
    integer = isinstance(head.head, int) and not isinstance(head.head, bool)
    if not integer or not 0 <= head.head < model.layers[head.layer]:
        raise ValueError(f"no head {head.head!r} in {head.layer}: {model.describe()}")


def _layer(model: ModelMap, layer: int | str) -> str:
    """By number, qualified name, or the name of a block with its first attention."""
    names = list(model.layers)
    layer = int(layer) if isinstance(layer, str) and layer.isdigit() else layer
    if isinstance(layer, int) and not isinstance(layer, bool):
        if not 0 <= layer < len(names):
            raise ValueError(f"no layer {layer}: {model.describe()}")
        return names[layer]
    if layer in model.layers:
        return layer
    inside = model.layers_of(layer) if isinstance(layer, str) else []
    if not inside:
        raise ValueError(f"no layer {layer!r}: {model.describe()}")
    return inside[0]


def _block(model: ModelMap, block: int | str) -> str:
    if isinstance(block, int) and not isinstance(block, bool):
        if not 0 <= block < len(model.blocks):
            raise ValueError(f"no block {block}: {model.model} has blocks 0..{len(model.blocks) - 1}")
        return model.blocks[block]
    return block
