"""Rectified SpaAttn (arXiv 2511.19835): exact attention to critical blocks, corrected for the dropped ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from ..attention_config import AttentionConfig, Default, check_density, plain_cpu, register
from ..grid import TokenGrid
from ..kernels.plan.affine import Affine
from ..kernels.plan.plan import Plan
from ..kernels.plan.tile_list import TileList
from ..schedule import Schedule
from ._check import check_choice, check_shares, check_size
from ._order import ORDERS, SIZES, block_order, block_size, coordinates, visual_rows
from ._scores import block_shares, counts_of, finite, match_heads, means_and_deviations
from ._select import TOLERANCE, extend_text, largest, ranks

# arXiv 2511.19835, from the released scripts
PUBLISHED = {
    name: (
        {"block": 128, "order": "hilbert", "mass": 0.3, "keep": keep, "first_frame": name.startswith("wan")},
        Schedule(dense_start=dense_start, dense_layers=dense_layers),
    )
    for name, keep, dense_start, dense_layers in (
        ("hunyuan", 0.20, 0, 0),
        ("wan2.1-14b", 0.25, 5 / 50, 2),
        ("wan2.1-14b-i2v", 0.25, 0, 2),
        ("wan2.2-a14b", 0.15, 3 / 40, 2),
        ("wan2.2-5b", 0.25, 5 / 50, 2),
        ("cogvideox1.5-5b", 0.15, 5 / 50, 0),
        ("cogvideox1.5-5b-i2v", 0.25, 5 / 50, 0),
        ("flux-4096", 0.10, 0, 0),
    )
}


@register
@dataclass(frozen=True)
class RectifiedConfig(AttentionConfig):
    """Rectified SpaAttn: `out = R * attention to the critical blocks + C`, R and C from pooled queries and keys.

    The pooled distribution P weighs each block of keys by its number of tokens and keeps text separate (IPAR). The
    blocks with the largest P are critical, and so is text. A block that is not critical enters C as P times its mean
    value where its gain exceeds its estimated error (GAPR); otherwise R gives its mass to the critical blocks. Text
    queries attend to everything. All this is computed in float32, since the released code overflows in float16; the
    weights of C are rounded to the dtype of the query, as a kernel rounds probabilities.

    One mean per block, as published, says little about a block whose tokens differ. With `estimate="parts"` blocks are
    cut into parts. P is then the mean over the parts of a block of queries; its gain is that mean, its error is the
    mean deviation of the parts from it, and C takes the difference. On queries and keys of the embedded model this
    nearly halves the error at a density of 0.25; on random fields a third of the error is left.

    Args:
        density (`float`, *optional*, defaults to 0.2): share of the products between visual tokens to compute,
            neighbours included.
        keep (`float`, *optional*): share of the blocks to keep, as published, instead of `density`; neighbours and
            blocks for `mass` come on top.
        mass (`float`, *optional*, defaults to 0): with `keep`, keep more blocks until their P exceeds this; published
            as 0.3.
        estimate (`str`, *optional*): `"parts"`, or the published `"block"`; by default `"block"` with `keep`.
        neighbors (`bool`, *optional*): keep the blocks that touch the block of queries; by default with `keep`.
        gapr (`bool`, *optional*, defaults to `True`): correct only where the gain exceeds the error; `False` corrects
            for every dropped block.
        block (`int`, *optional*): tokens of a block; by default the largest of 128, 64, 32, 16 that gives at least 32
            blocks.
        order (`str`, *optional*, defaults to `"nested"`): `"nested"`, the published `"hilbert"`, or `"raster"`.
        first_frame (`bool`, *optional*, defaults to `False`): let the first `height * width // block` blocks of the
            order attend to each other, as the released Wan scripts do. In raster order these are the first frame; on a
            curve most of their tokens belong to other frames.

    Example:

    >>> query, key = torch.randn(2, 1, 2304, 2, 32, generator=torch.Generator().manual_seed(0))
    >>> plan = RectifiedConfig(density=0.25).plan(TokenGrid(9, 16, 16), query, key)
    >>> round(plan.density, 2), tuple(plan.post.scale.shape)
    (0.25, (1, 2, 36))
    """

    density: float | None = Default(0.2)
    keep: float | None = None
    mass: float = 0.0
    estimate: str | None = None
    neighbors: bool | None = None
    gapr: bool = True
    block: int | None = None
    order: str = "nested"
    first_frame: bool = False

    method: ClassVar[str] = "rectified"
    dynamic: ClassVar[bool] = True
    plans_references: ClassVar[bool] = True
    published: ClassVar[dict] = PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose_one("density", "keep")
        check_density(self.density)
        check_shares("keep", None if self.keep is None else (self.keep,), 1)
        check_shares("mass", (self.mass,), 1)
        if self.mass and self.keep is None:
            raise ValueError(f"mass ({self.mass}) adds blocks to those of keep: give keep as well")
        for name, known in {"estimate": ("parts", "block"), "neighbors": (True, False)}.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), known)
        for name in ("first_frame", "gapr"):
            check_choice(name, getattr(self, name), (True, False))
        check_size("block", self.block, SIZES)
        check_choice("order", self.order, ORDERS)

    def _plan(self, grid: TokenGrid, query: Tensor, key: Tensor, **_) -> Plan:
        block = self.block or block_size(grid, 32)
        order, video = block_order(grid, self.order, block, query.device)
        tiles, all_tiles = video // block, len(order) // block
        text_key = key[:, grid.text_start : grid.text_start + grid.text]
        shares, text, gain = self._shares(query, key, order[:video], block, text_key)
        critical = self._critical(grid, shares, text, block)
        weights = gain.masked_fill(critical, 0).to(query.dtype)  # rounded before R is made, so that the two match
        scale = torch.nn.functional.pad(1 - weights.sum(-1, dtype=torch.float32), (0, all_tiles - tiles), value=1.0)
        lists = TileList.from_mask(extend_text(critical, all_tiles, all_tiles, True), block)
        post = Affine(scale, extend_text(weights, all_tiles, all_tiles, 0), block)
        return Plan(grid.tokens, order[None, None], (lists,), block, post=post, visual=visual_rows(grid, video))

    def _shares(
        self, query: Tensor, key: Tensor, order: Tensor, block: int, text_key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """P of blocks `(B, H, N, N)` and of text `(B, H, N)`, and the weights of C if all blocks were dropped."""
        if self._as_published("estimate", "block"):
            (q, dq), (k, dk) = (means_and_deviations(tokens, order, block) for tokens in (query, key))
            shares, text = pooled_shares(q, k, counts_of(order, block), text_key)
            return shares, text, shares.where(good_blocks(q, k, dq, dk), 0) if self.gapr else shares
        shares, error = block_shares(query, key, order, block, text_key)
        gain = (shares - error).clamp_(min=0) if self.gapr else shares
        return shares[..., :-1], shares[..., -1], gain[..., :-1]

    def _as_published(self, name: str, value: str | bool) -> bool:
        """Whether an option has the published value, which is its default with `keep`."""
        given = getattr(self, name)
        return self.keep is not None if given is None else given == value

    def _critical(self, grid: TokenGrid, shares: Tensor, text: Tensor, block: int) -> Tensor:
        """`(B, H, N, N)` bool, the critical blocks of keys for each block of queries."""
        blocks = shares.shape[-1]
        always = self._always_critical(grid, block, blocks).to(shares.device)
        if self.keep is None:
            return largest(shares + 2 * always, max(1, round(self.density * blocks)))
        every = torch.cat((shares, text[..., None]), -1) if grid.text else shares  # text competes as one more block
        mass = every.sort(dim=-1, descending=True, stable=True).values.cumsum(-1)
        drop = 1 - self.keep  # the released scripts say how much to drop, and round so
        least = every.shape[-1] if self.keep == 1 else int((1 - drop) * blocks)
        count = ((mass <= self.mass + TOLERANCE).sum(-1, keepdim=True) + 1).clamp(min=least)
        return (ranks(every) < count)[..., :blocks] | always

    def _always_critical(self, grid: TokenGrid, block: int, blocks: int) -> Tensor:
        """`(N, N)` bool on the CPU, the blocks that are critical whatever their P."""
        kept = torch.zeros(blocks, blocks, dtype=torch.bool, device="cpu")
        if self.first_frame:
            frame = grid.frame_tokens // block
            kept[:frame, :frame] = True
        if self._as_published("neighbors", True):
            near = neighbor_blocks(TokenGrid(grid.frames, grid.height, grid.width), self.order, block)
            kept[: len(near), : len(near)] |= near  # blocks of references follow
        return kept


def pooled_shares(q: Tensor, k: Tensor, counts: Tensor, text_key: Tensor) -> tuple[Tensor, Tensor]:
    """P of IPAR: the mass that mean queries give to the blocks `(B, H, N, N)` and to all text `(B, H, N)`, float32.

    It is the softmax of the pooled logits plus ln(tokens), and of the logsumexp of the logits of the text tokens.

    Args:
        q (`torch.Tensor`): `(B, H, N, D)` mean queries.
        k (`torch.Tensor`): `(B, Hkv, N, D)` mean keys.
        counts (`torch.Tensor`): `(N,)` tokens of each block.
        text_key (`torch.Tensor`): `(B, text, Hkv, D)` keys of the text.
    """
    scale = q.shape[-1] ** -0.5
    logits = [scale * q @ match_heads(k, q.shape[1]).mT + counts.log()]
    if text_key.shape[1]:
        text_key = match_heads(finite(text_key.transpose(1, 2)), q.shape[1])
        logits.append((scale * q @ text_key.mT).logsumexp(-1, keepdim=True))
    shares = torch.cat(logits, -1).softmax(-1)
    return shares[..., : len(counts)], shares[..., len(counts) :].sum(-1)


def good_blocks(q: Tensor, k: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
    """GAPR `(B, H, N, N)` bool: |q.k| exceeds |dq.k| + |q.dk|, of means and mean absolute deviations, in float32."""
    k, dk = match_heads(k, q.shape[1]), match_heads(dk, q.shape[1])
    return (q @ k.mT).abs() > (dq @ k.mT).abs() + (q @ dk.mT).abs()


@lru_cache(maxsize=8)
@plain_cpu()
def neighbor_blocks(grid: TokenGrid, order: str, block: int) -> Tensor:
    """`(N, N)` bool: blocks of keys that hold a token of the block of queries or one of a token's 26 neighbours."""
    rows, video = block_order(grid, order, block)
    at = coordinates(grid)
    block_of = torch.empty(grid.video_tokens, dtype=torch.int64)
    block_of[rows[rows >= 0]] = (rows >= 0).nonzero()[:, 0] // block
    size = torch.tensor([grid.frames, grid.height, grid.width])
    near = torch.zeros(video // block, video // block, dtype=torch.bool)
    for step in product((-1, 0, 1), repeat=3):
        to = at + torch.tensor(step)
        inside = ((to >= 0) & (to < size)).all(-1)
        token = (to[:, 0] * grid.height + to[:, 1]) * grid.width + to[:, 2]
        near[block_of[inside], block_of[token[inside]]] = True
    return near
