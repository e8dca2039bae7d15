"""The tensors of a plan, their checks, and derived values that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch
from torch import Tensor

from ..handles import handle_of
from .affine import Affine
from .boxes import Boxes
from .map_tensors import map_tensors, trainable
from .of_order import of_order
from .routed import RoutedRows
from .tile_list import TileList

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class PlanBase:
    """The fields of a [`Plan`], and rows and keys as backends read them."""

    tokens: int
    order: Tensor
    lists: tuple[TileList, ...]
    block_q: int
    q_rows: Tensor | RoutedRows | None = None
    key_mask: Tensor | None = None
    boxes: Boxes | None = None
    post: Affine | None = None
    visual: tuple[int, int] | None = None
    handle: Tensor = field(init=False, repr=False)  # stands for the plan in compiled graphs
    _memo: dict = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._begin()
        for part in fields(self):
            if part.init:
                object.__setattr__(self, part.name, map_tensors(getattr(self, part.name), trainable))
        for name, shape in (("order", self.order.shape), ("q_rows", self.query_shape)):
            if len(shape) != 3 or shape[-1] % self.block_q:
                raise ValueError(
                    f"{name} must be (B|1, H|1, R) with R a multiple of {self.block_q}, got {tuple(shape)}"
                )
        self._check_lists(self.query_shape[-1] // self.block_q)
        self._check_extras(self.query_shape[-1] // self.block_q)

    def _begin(self) -> None:
        object.__setattr__(self, "handle", handle_of(self))
        object.__setattr__(self, "_memo", {})

    def _check_lists(self, tiles: int) -> None:
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

    def __getstate__(self) -> dict:
        return {part.name: getattr(self, part.name) for part in fields(self) if part.init}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin()  # a copy has a handle and a memo of its own

    def memo(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of `make()`, kept with the plan under `key`; safe in several threads.

        `make` runs without gradients and outside of inference mode, so that training can use values that a validation
        computed.
        """
        if key not in self._memo:
            with torch.inference_mode(False), torch.no_grad():
                self._memo.setdefault(key, make())  # another thread may have been faster
        return self._memo[key]

    @property
    def query_rows(self) -> Tensor:
        """`(B|1, H|1, Rq)`, token of each query row, -1 for padding; decoded from bits at every access."""
        rows = self.order if self.q_rows is None else self.q_rows
        return rows.rows() if isinstance(rows, RoutedRows) else rows

    @property
    def query_shape(self) -> tuple[int, ...]:
        """The shape of `query_rows`."""
        return tuple((self.order if self.q_rows is None else self.q_rows).shape)

    @property
    def partial(self) -> bool:
        """Whether some tile is partial, so that `boxes` apply."""
        return any(lists.partial is not None for lists in self.lists)

    @property
    def in_order(self) -> bool:
        """Whether row i is token i, with padding at the end only."""

        def make() -> bool:
            natural = torch.arange(self.order.shape[-1], device=self.order.device)
            return bool((self.order == natural.where(natural < self.tokens, -1)).all())

        return self.memo("in_order", lambda: of_order(self.order, ("in order", self.tokens), make))

    @property
    def row_of_token(self) -> Tensor:
        """`(B|1, H|1, S)` int64, the row that holds each token."""

        def make() -> Tensor:
            return of_order(self.order, ("inverse", self.tokens), lambda: _inverse(self.order, self.tokens))

        return self.memo("row_of_token", make)

    def level_rows(self, lists: TileList) -> int:
        """KV rows of a level, its last tile filled up."""
        return -(-self.order.shape[-1] // (lists.pool * lists.tile)) * lists.tile

    def level_start(self, lists: TileList) -> int:
        """First row of a level in the concatenated KV rows of all levels."""
        return sum(self.level_rows(other) for other in self.lists[: self.lists.index(lists)])

    def level_sum(self, rows: Tensor, lists: TileList) -> Tensor:
        """Sums of `pool` consecutive entries of `rows` `(..., R)`, zeros up to the end of the level's last tile."""
        sums = rows.unflatten(-1, (-1, lists.pool)).sum(-1)
        return torch.nn.functional.pad(sums, (0, self.level_rows(lists) - sums.shape[-1]))

    @property
    def valid_keys(self) -> Tensor:
        """`(B|1, H|1, R)` bool, rows that hold a token which may be attended to."""
        return self.memo("valid_keys", lambda: self._of_keys("valid", lambda: _valid(self.order, self.key_mask)))

    def _of_keys(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return make() if self.key_mask is not None else of_order(self.order, key, make)

    @property
    def kv_counts(self) -> Tensor:
        """`(B|1, H|1, Rkv)` float32, the valid tokens in each KV row."""
        levels = tuple((lists.pool, lists.tile) for lists in self.lists)

        def make() -> Tensor:
            return torch.cat([self.level_sum(self.valid_keys.float(), lists) for lists in self.lists], -1)

        return self.memo("kv_counts", lambda: self._of_keys(("counts", levels), make))

    @property
    def kv_logw(self) -> Tensor:
        """`(B|1, H|1, Rkv)` float32, ln of `kv_counts`: -inf where there is no valid token."""
        return self.memo("kv_logw", self.kv_counts.log)


def _valid(order: Tensor, key_mask: Tensor | None) -> Tensor:
    valid = order >= 0
    if key_mask is None:
        return valid
    mask = key_mask[:, None].expand(-1, valid.shape[1], -1)
    rows = order.clamp(min=0).long().expand(mask.shape[0], -1, -1)
    return valid & mask.gather(-1, rows)


def _inverse(order: Tensor, tokens: int) -> Tensor:
    rows = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    slots = torch.full((*order.shape[:2], tokens + 1), -1, device=order.device)
    inverse = slots.scatter_(-1, order.where(order >= 0, tokens).long(), rows)[..., :tokens]
    if int((order >= 0).sum()) != tokens * order.shape[0] * order.shape[1] or bool((inverse < 0).any()):
        raise ValueError(f"order must hold each of the {tokens} tokens exactly once")
    return inverse
