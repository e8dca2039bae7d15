"""An attention plan as data: which key tiles every query tile visits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import PlanBase
from .dense_levels import dense_levels
from .density import level_densities
from .map_tensors import map_tensors
from .routed import RoutedRows


@dataclass(frozen=True, eq=False)
class Plan(PlanBase):
    """Everything that one attention call needs beside query, key and value.

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
            where these differ from `order`, or bits that encode the rows; several rows of a token are merged by their
            log-sum-exp.
        key_mask (`torch.Tensor`, *optional*): `(B, S)` bool, False for keys that no query attends to.
        boxes ([`Boxes`], *optional*): which keys the rows see in the `partial` entries of the one, unpooled level.
        post ([`Affine`], *optional*): applied to the rows of out before they are scattered to tokens; it does not
            change lse. Not together with `q_rows`.
        visual (`tuple[int, int]`, *optional*): first row of `order` with visual tokens, and the first row after
            them; all rows if not given. Rows outside (text) do not count in `density`.
    """

    def with_key_mask(self, key_mask: Tensor) -> Plan:
        """The same plan, ignoring the keys where the `(B, S)` boolean `key_mask` is False."""
        if key_mask.dtype != torch.bool or key_mask.ndim != 2 or key_mask.shape[-1] != self.tokens:
            raise ValueError(f"key_mask must be bool (B, {self.tokens}), got {key_mask.dtype} {tuple(key_mask.shape)}")
        return replace(self, key_mask=key_mask)

    def to(self, device: torch.device | str) -> Plan:
        """The same plan on another device."""
        return map_tensors(self, lambda tensor: tensor.to(device))

    @property
    def unpacked(self) -> Plan:
        """The same plan with `q_rows` as token numbers, for one call; the two share their memo."""
        if not isinstance(self.q_rows, RoutedRows):
            return self
        unpacked = replace(self, q_rows=self.query_rows)
        object.__setattr__(unpacked, "_memo", self._memo)
        return unpacked

    @property
    def masks_only(self) -> bool:
        """Whether the plan is dense attention with a mask: no pooled keys, no repeated queries, no `post`."""
        return len(self.lists) == 1 and self.lists[0].pool == 1 and self.q_rows is None and self.post is None

    @property
    def full(self) -> bool:
        """Whether the plan is dense attention without a mask."""
        if not self.masks_only or self.key_mask is not None or self.partial:
            return False
        (lists,) = self.lists
        tiles = self.level_rows(lists) // lists.tile
        # comparing the width of the lists does not wait for the device
        if lists.indices.shape[-1] < tiles:
            return False
        return self.memo("full", lambda: bool((lists.counts == tiles).all()))

    @property
    def shared(self) -> bool:
        """Whether all batch entries and heads have the same plan."""
        tensors = [self.order, *(lists.counts for lists in self.lists)]
        tensors += [] if self.post is None else [self.post.scale, self.post.weights]
        one = all(tensor.shape[:2] == (1, 1) for tensor in tensors) and self.query_shape[:2] == (1, 1)
        return one and (self.key_mask is None or len(self.key_mask) == 1)

    def density_tensors(self) -> tuple[Tensor, Tensor]:
        """`density` and `computed` as 0-dim float64 tensors on the plan's device, without waiting for it."""
        return self._level_densities(self.visual).sum(), self._level_densities(None).sum()

    @property
    def density(self) -> float:
        """The share of the products between visual tokens that is computed, a pooled key counting as one.

        Partial tiles are computed whole, and count as whole tiles.
        """
        return sum(self.level_density.values())

    @property
    def computed(self) -> float:
        """The share of all S x S products that is computed, text included."""
        return self.memo("computed", lambda: sum(self._level_densities(None).tolist()))

    @property
    def level_density(self) -> dict[int, float]:
        """The share of `density` spent at each pooling level."""
        shares = self.memo("level density", lambda: self._level_densities(self.visual).tolist())
        return dict(zip((lists.pool for lists in self.lists), shares))

    def _level_densities(self, visual: tuple[int, int] | None) -> Tensor:
        return self.memo(("level densities", visual), lambda: level_densities(self, visual))

    def to_dense_mask(self) -> Tensor:
        """Boolean `(B|1, H|1, S, S)`, which keys each query sees at any level; quadratic, for tests and pictures."""
        return dense_levels(self) > 0

    def to_dense_levels(self) -> Tensor:
        """Int32 `(B|1, H|1, S, S)`, the smallest pool at which each query sees each key, 0 where it does not."""
        return dense_levels(self)

    def describe(self) -> str:
        """One line of text: tokens, padding, tiles, density by level."""
        padding = self.order.shape[-1] / self.tokens - 1
        levels = ", ".join(f"{share:.3f} at pool {pool}" for pool, share in self.level_density.items())
        tiles = "/".join(f"{self.block_q}x{lists.tile}" for lists in self.lists)
        text = "" if self.visual is None else f", {self.computed:.4f} of all products"
        return (
            f"{self.tokens} tokens (+{padding:.1%} padding), tiles {tiles}, "
            f"density {self.density:.4f} ({levels}){text}"
        )
