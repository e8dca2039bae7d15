"""What an attention plan is: which key tiles every query tile visits, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..handles import handle_of
from .affine import Affine
from .boxes import Boxes
from .dense_levels import dense_levels
from .routed import RoutedRows
from .tile_list import TileList


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything one attention call needs to know beside query, key and value.

    Tokens are put into *rows* (`order`), rows into query tiles of `block_q` rows and KV tiles of `TileList.tile`
    rows. A pooled level holds the mean key and value of every `pool` consecutive rows, weighted in the softmax by the
    number of valid tokens in it (PSA, arXiv 2512.04025, Section 3). Batch and head dimensions of size 1 broadcast.

    Args:
        tokens (`int`): S, tokens of the sequence.
        order (`torch.Tensor`): `(B|1, H|1, R)` int64 or int32, token of each row, -1 for padding, every token
            exactly once; R is a multiple of `block_q` and of every pool.
        lists (`tuple[TileList, ...]`): KV tiles visited, at most one list per pooling level.
        block_q (`int`): rows of one query tile.
        q_rows (`torch.Tensor` or [`RoutedRows`], *optional*): `(B|1, H|1, Rq)` int64 or int32, token of each query row
            where it differs from `order`, or the bits that say so; a token may have several rows, which are merged by
            their log-sum-exp.
        key_mask (`torch.Tensor`, *optional*): `(B, S)` bool, False for keys that nobody attends to.
        boxes ([`Boxes`], *optional*): which keys the rows see in the `partial` entries of the one, unpooled level.
        post ([`Affine`], *optional*): applied to the rows of out before they are put back into tokens; lse is the one
            before it. Not together with `q_rows`.
        visual (`tuple[int, int]`, *optional*): first row of `order` that holds visual tokens and the first one past
            them; all rows where it is not given. What is outside (text) does not count in `density`.
    """

    tokens: int
    order: Tensor
    lists: tuple[TileList, ...]
    block_q: int
    q_rows: Tensor | RoutedRows | None = None
    key_mask: Tensor | None = None
    boxes: Boxes | None = None
    post: Affine | None = None
    visual: tuple[int, int] | None = None
    _cache: dict = field(default_factory=dict, repr=False)
    handle: Tensor = field(init=False, repr=False)  # by which the operator in compiled graphs finds the plan

    def __post_init__(self) -> None:
        object.__setattr__(self, "handle", handle_of(self))
        for name, shape in (("order", self.order.shape), ("q_rows", self.query_shape)):
            if len(shape) != 3 or shape[-1] % self.block_q:
                raise ValueError(
                    f"{name} must be (B|1, H|1, R) with R a multiple of {self.block_q}, got {tuple(shape)}"
                )
        tiles = self.query_shape[-1] // self.block_q
        for lists in self.lists:
            if self.order.shape[-1] % lists.pool:
                raise ValueError(f"{self.order.shape[-1]} rows do not divide into pools of {lists.pool}")
            if lists.counts.shape[-1] != tiles or lists.indices.shape[:-1] != lists.counts.shape:
                raise ValueError(
                    f"lists of level {lists.pool} must cover {tiles} query tiles, got counts "
                    f"{tuple(lists.counts.shape)} and indices {tuple(lists.indices.shape)}"
                )
        if len({lists.pool for lists in self.lists}) != len(self.lists):
            raise ValueError(f"one list per pooling level, got pools {[lists.pool for lists in self.lists]}")
        self._check_extras(tiles)

    def _check_extras(self, tiles: int) -> None:
        if self.partial:
            if self.boxes is None or len(self.lists) > 1 or self.lists[0].pool > 1:
                raise ValueError("partial entries need boxes and one single list, of pool 1")
            rows, keys = self.query_shape[-1], self.order.shape[-1]
            if self.boxes.low.shape[0] != rows or self.boxes.coordinate.shape[0] != keys:
                raise ValueError(f"boxes must have {rows} query rows and {keys} key rows")
        if self.post is not None:
            if self.q_rows is not None:
                raise ValueError("post cannot go with q_rows: rows of one token would be scaled before they merge")
            if self.post.weights.shape[-2:] != (tiles, self.order.shape[-1] // self.post.tile):
                raise ValueError(f"post must cover {tiles} query tiles, got weights {tuple(self.post.weights.shape)}")

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state | {"handle": handle_of(self)})  # copies and pickles are plans of their own

    def with_key_mask(self, key_mask: Tensor) -> Plan:
        """The same plan, ignoring the keys where the `(B, S)` boolean `key_mask` is False."""
        if key_mask.dtype != torch.bool or key_mask.ndim != 2 or key_mask.shape[-1] != self.tokens:
            raise ValueError(f"key_mask must be bool (B, {self.tokens}), got {key_mask.dtype} {tuple(key_mask.shape)}")
        return replace(self, key_mask=key_mask, _cache={})

    def to(self, device: torch.device | str) -> Plan:
        """The same plan on another device."""
        device = torch.device(device)
        if device == self.order.device:
            return self
        lists = tuple(level.to(device) for level in self.lists)
        moved = {name: getattr(self, name) for name in ("order", "q_rows", "key_mask", "boxes", "post")}
        moved = {name: part if part is None else part.to(device) for name, part in moved.items()}
        return replace(self, lists=lists, **moved, _cache={})

    @property
    def query_rows(self) -> Tensor:
        """`(B|1, H|1, Rq)`, token of each query row, -1 for padding; made anew from bits at every look."""
        rows = self.order if self.q_rows is None else self.q_rows
        return rows.rows() if isinstance(rows, RoutedRows) else rows

    @property
    def query_shape(self) -> tuple[int, ...]:
        """The shape of `query_rows`."""
        return tuple((self.order if self.q_rows is None else self.q_rows).shape)

    @property
    def unpacked(self) -> Plan:
        """The same plan with `q_rows` as tokens, for one call; what is kept for the plan is shared."""
        return replace(self, q_rows=self.query_rows) if isinstance(self.q_rows, RoutedRows) else self

    @property
    def partial(self) -> bool:
        """Whether `boxes` decide in some tile."""
        return any(lists.partial is not None for lists in self.lists)

    @property
    def masks_only(self) -> bool:
        """Whether the plan is dense attention with a mask: tokens as keys, each seen once, and nothing after it."""
        return len(self.lists) == 1 and self.lists[0].pool == 1 and self.q_rows is None and self.post is None

    @cached_property
    def full(self) -> bool:
        """Whether the plan is dense attention without a mask."""
        if not self.masks_only or self.key_mask is not None or self.partial:
            return False
        tiles = self.level_rows(self.lists[0]) // self.lists[0].tile
        # the width of the lists is known without waiting for the device
        return self.lists[0].indices.shape[-1] >= tiles and bool((self.lists[0].counts == tiles).all())

    @property
    def shared(self) -> bool:
        """Whether all batch entries and heads have the same plan."""
        tensors = [self.order, *(lists.counts for lists in self.lists)]
        tensors += [] if self.post is None else [self.post.scale, self.post.weights]
        one = all(tensor.shape[:2] == (1, 1) for tensor in tensors) and self.query_shape[:2] == (1, 1)
        return one and (self.key_mask is None or len(self.key_mask) == 1)

    @cached_property
    def in_order(self) -> bool:
        """Whether row i is token i, with padding at the end only."""
        natural = torch.arange(self.order.shape[-1], device=self.order.device)
        return bool((self.order == natural.where(natural < self.tokens, -1)).all())

    @cached_property
    def row_of_token(self) -> Tensor:
        """`(B|1, H|1, S)` int64, the row that holds each token."""
        return _inverse(self.order, self.tokens)

    def level_rows(self, lists: TileList) -> int:
        """KV rows of a level, its last tile filled up."""
        return -(-self.order.shape[-1] // (lists.pool * lists.tile)) * lists.tile

    def level_start(self, lists: TileList) -> int:
        """First row of a level in the concatenated KV rows of all levels."""
        return sum(self.level_rows(other) for other in self.lists[: self.lists.index(lists)])

    @cached_property
    def valid_keys(self) -> Tensor:
        """`(B|1, H|1, R)` bool, rows that hold a token which may be attended to."""
        valid = self.order >= 0
        if self.key_mask is None:
            return valid
        mask = self.key_mask[:, None].expand(-1, valid.shape[1], -1)
        rows = self.order.clamp(min=0).long().expand(mask.shape[0], -1, -1)
        return valid & mask.gather(-1, rows)

    @cached_property
    def kv_counts(self) -> Tensor:
        """`(B|1, H|1, Rkv)` float32, the valid tokens in each KV row."""
        return torch.cat([level_sum(self.valid_keys.float(), self, lists) for lists in self.lists], dim=-1)

    @cached_property
    def kv_logw(self) -> Tensor:
        """`(B|1, H|1, Rkv)` float32, ln of `kv_counts`: -inf where there is no valid token."""
        return self.kv_counts.log()

    @property
    def density(self) -> float:
        """Computed products between visual tokens over all of them, a pooled key counting as one.

        Partial tiles are computed whole, and count whole.
        """
        return sum(self.level_density.values())

    @cached_property
    def computed(self) -> float:
        """Computed products over the S x S of dense attention, those with text included."""
        return sum(self._shares(None).values())

    @cached_property
    def level_density(self) -> dict[int, float]:
        """The share of `density` spent at each pooling level."""
        return self._shares(self.visual)

    def _shares(self, rows: tuple[int, int] | None) -> dict[int, float]:
        """By level, the computed share of the products between the tokens in some rows of `order`."""
        inside = torch.ones_like(self.order, dtype=torch.bool)
        if rows is not None:
            inside[..., : rows[0]] = inside[..., rows[1] :] = False
        asks = self.query_rows
        asking = asks >= 0
        if rows is not None:
            at = inside if self.q_rows is None else inside.expand_as(self.order).gather(-1, self.row_of_token)
            asking = asking & (at if self.q_rows is None else _look_up(at, asks))
        queries = asking.unflatten(-1, (-1, self.block_q)).sum(-1).double()
        tokens = int((inside & (self.order >= 0))[0, 0].sum())
        shares = {}
        for lists in self.lists:
            valid = level_sum((self.valid_keys & inside).float(), self, lists) > 0
            keys = valid.unflatten(-1, (-1, lists.tile)).sum(-1).double()
            visited = (lists.to_mask(keys.shape[-1]).double() * keys[..., None, :]).sum(-1)
            shares[lists.pool] = float((visited * queries).sum(-1).mean()) / max(tokens, 1) ** 2
        return shares

    def to_dense_mask(self) -> Tensor:
        """Boolean `(B|1, H|1, S, S)`, which keys each query sees at any level; quadratic, for tests and pictures."""
        return dense_levels(self) > 0

    def to_dense_levels(self) -> Tensor:
        """Int32 `(B|1, H|1, S, S)`, the smallest pool at which each query sees each key, 0 where it does not."""
        return dense_levels(self)

    def describe(self) -> str:
        """One line for people: tokens, padding, tiles, density by level."""
        padding = self.order.shape[-1] / self.tokens - 1
        levels = ", ".join(f"{share:.3f} at pool {pool}" for pool, share in self.level_density.items())
        tiles = "/".join(f"{self.block_q}x{lists.tile}" for lists in self.lists)
        text = "" if self.visual is None else f", {self.computed:.4f} of all products"
        return (
            f"{self.tokens} tokens (+{padding:.1%} padding), tiles {tiles}, "
            f"density {self.density:.4f} ({levels}){text}"
        )


def level_sum(rows: Tensor, plan: Plan, lists: TileList) -> Tensor:
    """Sums of `pool` consecutive entries of `rows` `(..., R)`, zeros up to the end of the level's last tile."""
    sums = rows.unflatten(-1, (-1, lists.pool)).sum(-1)
    return torch.nn.functional.pad(sums, (0, plan.level_rows(lists) - sums.shape[-1]))


def _look_up(of_token: Tensor, tokens: Tensor) -> Tensor:
    """`of_token` `(B|1, H|1, S)` at each of `tokens` `(B|1, H|1, R)`, -1 anywhere."""
    shape = torch.broadcast_shapes(of_token.shape[:2], tokens.shape[:2])
    return of_token.expand(*shape, -1).gather(-1, tokens.clamp(min=0).long().expand(*shape, -1))


def _inverse(order: Tensor, tokens: int) -> Tensor:
    rows = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    slots = torch.full((*order.shape[:2], tokens + 1), -1, device=order.device)
    inverse = slots.scatter_(-1, order.where(order >= 0, tokens).long(), rows)[..., :tokens]
    if int((order >= 0).sum()) != tokens * order.shape[0] * order.shape[1] or bool((inverse < 0).any()):
        raise ValueError(f"order must hold each of the {tokens} tokens exactly once")
    return inverse
