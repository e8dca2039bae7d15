"""MiniMax-H3: text, conditions, sound and video packed into one sequence, of which the video is the last part."""

from __future__ import annotations

from torch import Tensor, nn

from .adapter import Adapter, Blocks, NoGrid, register
from .grids import Grid


def _video_rows(inputs: dict) -> Tensor:
    """Rows of the video that is generated: those after the last gap, of the last timestep."""
    rows, steps = inputs["video_indices"], inputs["timestep_indices"]
    own = (rows - rows[-1] == rows.new_tensor(range(1 - len(rows), 1))) & (steps[rows] == steps[rows[-1]])
    return rows[own]


def _grid(model: nn.Module, inputs: dict) -> Grid:
    rows = _video_rows(inputs)
    at = inputs["position_ids"][rows]
    last = at[at[:, 0] == at[-1, 0]]
    height = len(last[:, 1].unique())
    if len(last) % height or len(rows) % len(last):
        raise NoGrid(f"the {len(rows)} tokens of the video do not fill frames of {len(last)}")
    return len(rows) // len(last), height, len(last) // height


def _tokens_before(model: nn.Module, inputs: dict) -> int:
    return int(_video_rows(inputs)[0])


MINIMAX_H3 = register(
    Adapter(
        "MiniMaxH3Transformer3DModel",
        Blocks(transformer_blocks="attn"),
        _grid,
        other_tokens=_tokens_before,
        parallel_split="sequence",
    )
)
