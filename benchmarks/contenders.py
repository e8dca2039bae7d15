"""Who takes part in the quality study: the methods, and the controls that they are measured against."""

from __future__ import annotations

from functools import partial

import diffattn
from diffattn import AttentionConfig

from .controls import RandomBlocks, TopBlocks, TopTokens

METHODS = {
    "auto": {},
    "pyramid": {},
    "rectified": {},
    "vmoba": {},
    "vmoba, tile routing": {"routing": "tile"},
    "neighborhood": {},
    "radial": {},
}
ORACLES = {"top-k tokens, mean of the rest (oracle)": True, "top-k tokens (oracle)": False}
CONTROLS = {
    **{name: partial(TopTokens, rest=rest) for name, rest in ORACLES.items()},
    "top-k blocks": TopBlocks,
    "random blocks": RandomBlocks,
}
CONTENDERS = {
    **{name: partial(diffattn.config, name.split(",")[0], **options) for name, options in METHODS.items()},
    **CONTROLS,
}


def contender(name: str, density: float) -> AttentionConfig:
    """A method or control by its name in the tables, at a density."""
    return CONTENDERS[name](density=density)
