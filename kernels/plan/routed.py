"""Query rows of token routing, kept as one bit for each query and group of keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RoutedRows:
    """Which tokens attend to each group of keys; every such pair is one query row, group by group.

    Token numbers would take four bytes for each pair. Bits take an eighth of a byte for each token and group, which is
    less as soon as more than one pair in 32 is chosen. Each call decodes the rows that it needs.

    Args:
        bits (`torch.Tensor`): `(B|1, H|1, G, ceil(S / 8))` uint8; bit i of byte j says whether token 8 j + i attends
            to the group.
        tokens (`int`): S.
        block (`int`): rows of a tile; every group is padded to whole tiles, which visit the same keys.
        tiles (`int`): tiles of every head; the last ones may hold padding only.
    """

    bits: Tensor
    tokens: int
    block: int
    tiles: int

    @classmethod
    def of(cls, chosen: Tensor, block: int) -> RoutedRows:
        """Rows of the chosen pairs.

        Args:
            chosen (`torch.Tensor`): `(B, H, G, S)` bool, tokens that attend to each group of keys.
            block (`int`): rows of a tile.
        """
        tiles = (chosen.sum(-1) + block - 1) // block
        return cls(_packed(chosen), chosen.shape[-1], block, max(int(tiles.sum(-1).max()), 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(B|1, H|1, Rq)`, the shape of `rows`."""
        return (*self.bits.shape[:2], self.tiles * self.block)

    @property
    def device(self) -> torch.device:
        """The device of the bits."""
        return self.bits.device

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return self.bits.nbytes

    def moved(self, order: Tensor) -> RoutedRows:
        """The same rows where token i is at `order[i]` of the sequence, `(S,)` int64."""
        return replace(self, bits=_packed(self.chosen()[..., order.argsort()]))

    def chosen(self) -> Tensor:
        """`(B|1, H|1, G, S)` bool, as given to `of`."""
        place = torch.arange(8, dtype=torch.uint8, device=self.device)
        return (self.bits[..., None] >> place & 1).bool().flatten(-2)[..., : self.tokens]

    def groups(self) -> Tensor:
        """`(B|1, H|1, Rq / block)` int64, the group of every tile, -1 where there is none."""
        last = self._tiles_of_group(self.chosen()).cumsum(-1)
        tile = torch.arange(self.tiles, device=self.device).expand(*last.shape[:2], -1).contiguous()
        group = torch.searchsorted(last, tile, right=True)
        return group.where(group < last.shape[-1], -1)

    def count(self, counted: Tensor) -> Tensor:
        """`(B|1, H|1, Rq / block)` int64, the rows of `counted` tokens, `(B|1, H|1, S)` bool, in each tile.

        The first tile of a group gets the count of the whole group, since its tiles visit the same keys.
        """
        chosen = self.chosen()
        tiles = self._tiles_of_group(chosen)
        counts = (chosen & counted[:, :, None]).sum(-1)
        first = (tiles.cumsum(-1) - tiles).clamp(max=self.tiles - 1).expand_as(counts)
        return counts.new_zeros(*counts.shape[:2], self.tiles).scatter_add_(-1, first, counts)

    def rows(self) -> Tensor:
        """`(B|1, H|1, Rq)` int32, token of every row, -1 for padding."""
        chosen = self.chosen()
        counts, tiles = chosen.sum(-1).flatten(), self._tiles_of_group(chosen)
        pair = chosen.flatten().nonzero()[:, 0]  # sorted by batch, head, group, token
        group, token = pair // self.tokens, pair % self.tokens
        head = torch.arange(tiles.shape[0] * tiles.shape[1], device=self.device).view(*tiles.shape[:2], 1)
        first = ((tiles.cumsum(-1) - tiles + head * self.tiles) * self.block).flatten()
        place = torch.arange(len(pair), device=self.device) + (first - (counts.cumsum(0) - counts))[group]
        rows = torch.full(self.shape, -1, dtype=torch.int32, device=self.device)
        rows.view(-1)[place] = token.int()
        return rows

    def _tiles_of_group(self, chosen: Tensor) -> Tensor:
        return (chosen.sum(-1) + self.block - 1) // self.block


def _packed(chosen: Tensor) -> Tensor:
    whole = torch.nn.functional.pad(chosen, (0, -chosen.shape[-1] % 8)).view(torch.uint8).unflatten(-1, (-1, 8))
    place = torch.arange(8, dtype=torch.uint8, device=chosen.device)
    return (whole << place).sum(-1, dtype=torch.uint8)
