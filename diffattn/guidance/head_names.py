"""Reads heads, layers and blocks in every form that a user may write them in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .guidance_config import GuidanceConfig
from .head_set import Head, HeadSet, describe_model
from .model import ModelMap
from .strengths import check_strength


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
        name = _layer_name(model, layer)
        found += [Head(name, head) for head in range(model.layers[name])]
    for block in [skip_blocks] if isinstance(skip_blocks, (int, str)) else skip_blocks or ():
        skipped.append(_block_name(model, block))
    if strength is not None:
        check_strength(strength)
        found = [replace(head, strength=head.strength * strength) for head in found]
    unique = {(head.layer, head.head): head for head in found}
    resolved = replace(
        base,
        heads=tuple(unique.values()),
        skip_blocks=tuple(dict.fromkeys(skipped)),
        model=describe_model(model),
        guidance=guidance or base.guidance,
    )
    resolved.check(model)
    return resolved


def _read_heads(model: ModelMap, heads: Any) -> list[Head]:
    if heads is None:
        return []
    if isinstance(heads, dict):
        return [_read_head(model, head, own) for head, own in heads.items()]
    if isinstance(heads, (str, int)) or not isinstance(heads, Iterable):
        raise TypeError(f"heads must be a HeadSet, a dict or a list of (layer, head), got {heads!r}")
    return [_read_head(model, head) for head in heads]


def _read_head(model: ModelMap, head: Any, strength: Any = 1.0) -> Head:
    if isinstance(head, Head):
        found_head = head
    elif isinstance(head, dict):
        found_head = Head(**head)
    elif isinstance(head, str) and head.count(":") == 1:
        layer, number = head.split(":")
        found_head = Head(_layer_name(model, layer), int(number) if number.isdigit() else number, strength)
    elif isinstance(head, (tuple, list)) and len(head) in (2, 3):
        found_head = Head(_layer_name(model, head[0]), head[1], head[2] if len(head) == 3 else strength)
    else:
        raise TypeError(f"a head is (layer, head) or 'layer:head', got {head!r}")
    found_head.check(model)
    return found_head


def _layer_name(model: ModelMap, layer: int | str) -> str:
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


def _block_name(model: ModelMap, block: int | str) -> str:
    if isinstance(block, int) and not isinstance(block, bool):
        if not 0 <= block < len(model.blocks):
            raise ValueError(f"no block {block}: {model.model} has blocks 0..{len(model.blocks) - 1}")
        return model.blocks[block]
    return block
